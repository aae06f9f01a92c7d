"""How well the modelled KV cache of the OpenVINO engine agrees with what is measured.

    python -m benchmarks.kv_model --json -

Real prompts' ids do not matter here, so prompts are random ids: documents that are asked
for again, to their end or to a part of it. Each request's prediction (its cached prompt
tokens) is held against three things the model knows nothing of: the time to the first
token (nearer, as a ratio, to the one of a cold prompt or of a cached one), the number of steps to
it, which at 32 tokens a step counts the uncached ones, and in every step the blocks in use
that the library reports.

Phases: ``reuse`` has room for everything; in ``pressure`` the documents are half as large
again as the cache, so that most requests evict; ``together`` asks four at a time, with
cancels, where only the blocks in use can be told apart.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.statistics import median
from inference_svc.engine import GenerationRequest
from inference_svc.engines.openvino import BLOCK_SIZE, OpenVinoEngine
from inference_svc.settings import OpenVinoSettings
from inference_svc.slots import Slots
from sidecache import weights

STEP_TOKENS = 32
DOCUMENT_TOKENS = 320
DOCUMENTS = 12
# 120 blocks are asked for in all.
PRESSED_BLOCKS = 80
ROOMY_BLOCKS = 400
VOCABULARY = range(100, 40_000)


@dataclass(frozen=True)
class Outcome:
    """What one request met.

    Attributes:
        cached: prompt tokens that the model says were cached.
        steps: from joining to the first token.
    """

    prompt_tokens: int
    cached: int
    steps: int
    ttft_s: float

    @property
    def uncached(self) -> int:
        """Prompt tokens that had to be computed."""
        return self.prompt_tokens - self.cached


class WatchedEngine(OpenVinoEngine):
    """Counts steps, and compares the blocks in use in each."""

    steps = 0
    equal_steps = 0

    def _stepped(self, event: dict[str, Any]) -> None:
        if event["stepped"]:
            self.steps += 1
        super()._stepped(event)
        if event["stepped"] and self._blocks is not None:
            reported = round(event["kv_cache_usage"] * self._blocks.capacity)
            self.equal_steps += reported == self._blocks.in_use


async def ask(engine: WatchedEngine, ids: Sequence[int], leave_after: int = 1) -> Outcome:
    """Run one prompt up to so many tokens, then leave."""
    request = GenerationRequest("kv-model", tuple(ids), max_tokens=max(2, leave_after))
    steps, began = engine.steps, perf_counter()
    async with engine.submit(request) as deltas:
        first = await anext(deltas)
        ttft_s = perf_counter() - began
        met = Outcome(len(ids), first.cached_prompt_tokens or 0, engine.steps - steps, ttft_s)
        for _ in range(leave_after - 1):
            await anext(deltas)
    while engine.load_figures().running_sequences:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)
    return met


def prompts(documents: Sequence[Sequence[int]], count: int, seed: int) -> Iterator[list[int]]:
    """A document as a whole, or half of it and an end of its own."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    for _ in range(count):
        document = chance.choice(documents)
        if chance.getrandbits(1):
            yield [*document]
        else:
            half = DOCUMENT_TOKENS // 2
            yield [*document[:half], *chance.choices(VOCABULARY, k=half)]


@asynccontextmanager
async def engine_of(model: Path, kv_blocks: int) -> AsyncIterator[WatchedEngine]:
    """A loaded engine with a cache of so many blocks."""
    settings = OpenVinoSettings(kv_blocks=kv_blocks, max_num_batched_tokens=STEP_TOKENS)
    engine = WatchedEngine(model, "smollm2", settings, Slots(8, 64))
    await engine.load()
    try:
        yield engine
    finally:
        await engine.aclose()


async def one_by_one(model: Path, phase: str, kv_blocks: int, count: int) -> dict[str, object]:
    """One phase of requests that meet an idle engine."""
    chance = random.Random(kv_blocks)  # noqa: S311 - repeatable, not secret
    documents = [chance.choices(VOCABULARY, k=DOCUMENT_TOKENS) for _ in range(DOCUMENTS)]
    async with engine_of(model, kv_blocks) as engine:
        met = [await ask(engine, each) for each in prompts(documents, count, seed=kv_blocks)]
        return {"phase": phase, "kv_blocks": kv_blocks} | judged(met) | compared(engine)


def judged(met: Sequence[Outcome]) -> dict[str, object]:
    """How often prediction and measurement agree.

    Requests with half of their prompt cached are in neither class of times; their steps
    still count.
    """
    cold = [each for each in met if each.cached < BLOCK_SIZE]
    warm = [each for each in met if each.cached >= each.prompt_tokens - BLOCK_SIZE]
    exact = sum(each.steps == ceil(each.uncached / STEP_TOKENS) for each in met)
    return {
        "requests": len(met),
        "predicted_cold": len(cold),
        "predicted_warm": len(warm),
        "prefill_steps_agree": round(exact / len(met), 4),
        **classes([each.ttft_s for each in cold], [each.ttft_s for each in warm]),
    }


def classes(cold_s: Sequence[float], warm_s: Sequence[float]) -> dict[str, float]:
    """Times to first token of either prediction; nothing where one of them never came."""
    if not cold_s or not warm_s:
        return {}
    cold_p50_s, warm_p50_s = median(cold_s), median(warm_s)
    border_s = sqrt(cold_p50_s * warm_p50_s)
    right = sum(each > border_s for each in cold_s) + sum(each <= border_s for each in warm_s)
    return {
        "ttft_class_agrees": round(right / (len(cold_s) + len(warm_s)), 4),
        "cold_ttft_p50_s": round(cold_p50_s, 3),
        "warm_ttft_p50_s": round(warm_p50_s, 3),
    }


async def together(model: Path, count: int) -> dict[str, object]:
    """Four at a time, some cancelled after a few tokens, in the small cache."""
    chance = random.Random(4)  # noqa: S311 - repeatable, not secret
    documents = [chance.choices(VOCABULARY, k=DOCUMENT_TOKENS) for _ in range(DOCUMENTS)]
    waiting = prompts(documents, count, seed=4)
    async with engine_of(model, PRESSED_BLOCKS) as engine:

        async def work() -> None:
            for each in waiting:
                request = GenerationRequest("kv-model", tuple(each), max_tokens=40)
                async with engine.submit(request) as deltas:
                    for _ in range(chance.choice([1, 5, 40])):
                        if await anext(deltas, None) is None:
                            break

        await asyncio.gather(*(work() for _ in range(4)))
        row: dict[str, object] = {"phase": "together", "kv_blocks": PRESSED_BLOCKS}
        return row | {"requests": count} | compared(engine)


def compared(engine: WatchedEngine) -> dict[str, object]:
    """In how many steps the model had as many blocks in use as the library."""
    return {"steps": engine.steps, "blocks_agree": round(engine.equal_steps / engine.steps, 4)}


async def measure(model: Path, count: int) -> list[dict[str, object]]:
    """Every phase in turn."""
    rows = []
    for phase, kv_blocks in (("reuse", ROOMY_BLOCKS), ("pressure", PRESSED_BLOCKS)):
        rows.append(await one_by_one(model, phase, kv_blocks, count))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return [*rows, await together(model, count)]


def main() -> None:
    """Measure and print one row a phase."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, help="a GGUF file; default: the pinned model")
    arguments.add_argument("--requests", type=int, default=60, help="of each phase")
    arguments.add_argument("--json", default="-", help="where the rows go; - is standard output")
    chosen = arguments.parse_args()
    model = chosen.model or weights.locate("smollm2-135m-instruct")
    rows = json.dumps(asyncio.run(measure(model, chosen.requests)), indent=1)
    if chosen.json == "-":
        print(rows)
    else:
        Path(chosen.json).write_text(rows)


if __name__ == "__main__":
    main()
