"""The two ways to one engine that benchmarks.gpu_path compares."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.gpu_path_client import prompt
from benchmarks.gpu_path_front import Callers
from benchmarks.steady import SEEDS_EACH, Tally, closed_loops
from inference_svc.engine import GenerationRequest
from inference_svc.engines.vllm import VllmEngine

_POLL_S = 0.002


@dataclass
class Burst:
    """So many answers that began at once."""

    duration_s: float
    tokens: int
    first_token_s: list[float]


class Seeds:
    """Of prompts that nobody has used."""

    def __init__(self) -> None:
        self._next = 1

    def take(self, count: int = 1) -> range:
        """The next ones."""
        first, self._next = self._next, self._next + count
        return range(first, self._next)


class Way(Protocol):
    """How to ask the engine."""

    async def burst(self, streams: int, prompt_tokens: int, max_tokens: int) -> Burst:
        """So many answers, all begun at once."""

    async def steady(
        self, streams: int, prompt_tokens: int, max_tokens: int, window: tuple[float, float]
    ) -> Tally:
        """So many closed loops, until the window ends and the engine is idle."""


class Direct:
    """The engine's own generate(), in its process and without detokenizing."""

    def __init__(self, engine: VllmEngine, seeds: Seeds) -> None:
        self._engine = engine
        self._seeds = seeds

    async def burst(self, streams: int, prompt_tokens: int, max_tokens: int) -> Burst:
        first_token_s: list[float] = []
        tokens = 0

        async def one(ids: list[int]) -> None:
            nonlocal tokens
            start, seen = time.monotonic(), 0

            def told(count: int) -> None:
                nonlocal seen
                if count and not seen:
                    first_token_s.append(time.monotonic() - start)
                seen += count

            await self._answer(ids, max_tokens, told)
            tokens += seen

        prompts = [prompt(seed, prompt_tokens) for seed in self._seeds.take(streams)]
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for ids in prompts:
                group.create_task(one(ids))
        return Burst(time.monotonic() - began, tokens, first_token_s)

    async def steady(
        self, streams: int, prompt_tokens: int, max_tokens: int, window: tuple[float, float]
    ) -> Tally:
        async def answer(seed: int, length: int, told: Callable[[int], None]) -> None:
            await self._answer(prompt(seed, prompt_tokens), length, told)

        first_seed = self._seeds.take(streams * SEEDS_EACH)[0]
        tally = await closed_loops(answer, range(streams), streams, max_tokens, first_seed, window)
        await until_idle(self._engine)
        return tally

    async def _answer(self, ids: list[int], max_tokens: int, told: Callable[[int], None]) -> None:
        request = GenerationRequest("direct", tuple(ids), max_tokens)
        async for output in self._engine.generate(request, ids, 0, 0):
            told(len(output.outputs[0].token_ids))


class Through:
    """The same through router, sidecar and worker."""

    def __init__(self, engine: VllmEngine, callers: Callers, seeds: Seeds) -> None:
        self._engine = engine
        self._callers = callers
        self._seeds = seeds

    async def burst(self, streams: int, prompt_tokens: int, max_tokens: int) -> Burst:
        seeds = self._seeds.take(streams)
        commands = [
            {
                "do": "streams",
                "rows": [[seed] for seed in seeds[share.start : share.stop]],
                "prompt_tokens": prompt_tokens,
                "max_tokens": max_tokens,
            }
            for share in self._shares(streams)
        ]
        done = await self._callers.ask_each(commands)
        tokens = sum(each["tokens"] for each in done)
        if tokens != streams * max_tokens:
            raise SystemExit(f"{tokens} tokens came of {streams * max_tokens}")
        duration_s = max(each["ended"] for each in done) - min(each["began"] for each in done)
        return Burst(duration_s, tokens, [t for each in done for t in each["first_token_s"]])

    async def steady(
        self, streams: int, prompt_tokens: int, max_tokens: int, window: tuple[float, float]
    ) -> Tally:
        first_seed = self._seeds.take(streams * SEEDS_EACH)[0]
        commands = [
            {
                "do": "steady",
                "streams": [share.start, share.stop],
                "of": streams,
                "prompt_tokens": prompt_tokens,
                "max_tokens": max_tokens,
                "first_seed": first_seed,
                "begin": window[0],
                "end": window[1],
            }
            for share in self._shares(streams)
        ]
        tally = Tally()
        for each in await self._callers.ask_each(commands):
            tally.add(each)
        await until_idle(self._engine)
        return tally

    def _shares(self, streams: int) -> list[range]:
        """Which of the streams each process of callers has; as equal as can be."""
        count = min(self._callers.processes, streams)
        cuts = [streams * number // count for number in range(count + 1)]
        return [range(*each) for each in itertools.pairwise(cuts)]


async def until_idle(engine: VllmEngine) -> None:
    """Return once the engine runs nothing."""
    while engine.load_figures().running_sequences:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(_POLL_S)
    # Direct calls hold no slot of ours: what they left behind is aborted by now.
    await asyncio.sleep(10 * _POLL_S)
