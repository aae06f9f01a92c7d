"""How often the judge errs on answers that a real model gave.

    python -m benchmarks.judge_noise --pairs FILE … --count 60 --json -

Takes prompts in pairs that are known to ask for the same or not, has the embedded
model answer both (greedy, at most 48 tokens), and lets the judge compare the two
answers. A false accept is a pair that asks for different answers and is judged the
same; a false reject one that asks for the same and is judged different, be it that
the judge errs or that the model answered one question in two ways. Both are what
the bound on false hits sees of its judge. Intervals are Wilson's, 95 %.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.semantic.data import Pair, read_pairs
from benchmarks.semantic_quality import wilson
from cache_svc.bound_settings import BoundSettings
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.judge import AnswerJudge, Judge
from cache_svc.open_embedder import MINILM_WEIGHTS
from cache_svc.settings import SemanticSettings
from inference_svc.engine import Chat, ChatMessage, Engine, GenerationRequest
from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.settings import OpenVinoSettings
from inference_svc.slots import Slots
from sidecache import weights

MODEL_WEIGHTS = "smollm2-135m-instruct"
MAX_TOKENS = 48
AT_ONCE = 4
# Cosines swept beside the setting's own.
THRESHOLDS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


async def answer(engine: Engine, prompt: str, turn: asyncio.Semaphore) -> str:
    """What the model says to one question, greedily."""
    async with turn:
        ids = await engine.tokenize(Chat((ChatMessage("user", prompt),)))
        request = GenerationRequest(prompt, tuple(ids), MAX_TOKENS)
        async with engine.submit(request) as deltas:
            return "".join([delta.text async for delta in deltas])


async def answer_all(prompts: Iterable[str]) -> dict[str, str]:
    """The answer to each prompt, each asked once."""
    asked = list(dict.fromkeys(prompts))
    slots = Slots(AT_ONCE, len(asked))
    engine = OpenVinoEngine(weights.locate(MODEL_WEIGHTS), "model", OpenVinoSettings(), slots)
    await engine.load()
    try:
        turn = asyncio.Semaphore(AT_ONCE)
        answers = await asyncio.gather(*(answer(engine, prompt, turn) for prompt in asked))
    finally:
        await engine.aclose()
    return dict(zip(asked, answers, strict=True))


async def judge_all(judge: Judge, pairs: Sequence[Pair], answers: dict[str, str]) -> dict[str, Any]:
    """Both rates with their intervals; pairs that the judge cannot tell are counted apart."""
    counts = {True: [0, 0], False: [0, 0]}
    silent = 0
    for pair in pairs:
        same = await judge.same(answers[pair.a], answers[pair.b])
        if same is None:
            silent += 1
            continue
        counts[pair.same_answer][0] += 1
        counts[pair.same_answer][1] += same is not pair.same_answer
    return {
        "false_accept": _rate(*counts[False]),
        "false_reject": _rate(*counts[True]),
        "cannot_tell": silent,
    }


def _rate(total: int, wrong: int) -> dict[str, Any]:
    low, high = wilson(wrong, total)
    share = wrong / total if total else None
    return {"pairs": total, "wrong": wrong, "rate": share, "low": low, "high": high}


def chosen_pairs(files: Sequence[Path], count: int) -> list[Pair]:
    """``count`` pairs of each kind, drawn the same way every time."""
    pairs = [pair for file in files for pair in read_pairs(file).pairs]
    random.Random(6).shuffle(pairs)  # noqa: S311 - a sample, no secret
    kinds = [[pair for pair in pairs if pair.same_answer is same] for same in (True, False)]
    return [pair for kind in kinds for pair in kind[:count]]


async def measure(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """A row for the judge's setting and for each threshold swept."""
    answers = await answer_all(text for pair in pairs for text in (pair.a, pair.b))
    settings, bound = SemanticSettings(), BoundSettings()
    embedder = OnnxEmbedder(
        weights.locate(MINILM_WEIGHTS), window_tokens=settings.window_tokens, threads=1
    )
    rows = []
    async with EmbeddingQueue.open(
        embedder,
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_text_bytes=settings.max_text_bytes,
        kept_vectors=2 * len(answers),
    ) as queue:
        for cosine in (bound.judge_min_similarity, *THRESHOLDS):
            judge = AnswerJudge(queue, cosine, bound.judge_chars)
            rows.append({"min_similarity": cosine, **await judge_all(judge, pairs, answers)})
    rows[0]["setting"] = True
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, help="pair sets")
    parser.add_argument("--count", type=int, default=60, help="pairs of each kind")
    parser.add_argument("--json", default="-", help="where the rows go; -: standard output")
    options = parser.parse_args()
    text = json.dumps(asyncio.run(measure(chosen_pairs(options.pairs, options.count))), indent=1)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
