"""Real weights: whether greedy text through the path is the engine's own.

    python -m benchmarks.gpu_path --engine vllm --checkpoint FOLDER --json -

Each question is asked of the engine itself, in its process, and through router, sidecar and
worker, one at a time; then all of them at once through the path. In a batch a GPU adds up in
another order, so there the same text is counted and not demanded.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_path_front import KEY
from inference_svc.engine import Chat, ChatMessage, GenerationRequest
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.vllm import VllmEngine
from sidecache.client import SidecacheClient
from sidecache.generation import Completion
from sidecache.v1 import inference_pb2 as pb

ANSWER_TOKENS = 64
QUESTIONS = (
    "Write a short poem about the sea.",
    "What is the capital of France?",
    "Explain what a cache is to a child.",
    "List three uses of a paper clip.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "Tell me a fact about octopuses.",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 23?",
    "Name four planets and one moon.",
    "Give me a title for a story about rain.",
)


async def compare(engine: VllmEngine, checkpoint: Path, router: str) -> dict[str, Any]:
    """One row: how many texts are the same."""
    tokenizer = HfTokenizer(checkpoint)
    own = [await _own(engine, tokenizer, question) for question in QUESTIONS]
    async with SidecacheClient(router, api_key=KEY) as client:
        alone = [await _ask(client, question) for question in QUESTIONS]
        together = await asyncio.gather(*[_ask(client, question) for question in QUESTIONS])
    return {
        "engine": "vllm",
        "build": engine.facts.build,
        "model": engine.facts.name,
        "revision": engine.facts.revision,
        "questions": len(QUESTIONS),
        "tokens": sum(len(ids) for ids, _ in own),
        "same_ids": sum(_ids(answer) == ids for answer, (ids, _) in zip(alone, own, strict=True)),
        "same_text": sum(answer.text == text for answer, (_, text) in zip(alone, own, strict=True)),
        "same_in_a_batch": sum(
            answer.text == text for answer, (_, text) in zip(together, own, strict=True)
        ),
        "example": [QUESTIONS[0], alone[0].text],
    }


def is_crossed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether every text was the engine's own."""
    return bool(rows) and all(
        row["same_ids"] == row["same_text"] == row["questions"] for row in rows
    )


async def _own(engine: VllmEngine, tokenizer: HfTokenizer, question: str) -> tuple[list[int], str]:
    """The engine's ids, and its tokenizer's text of all of them at once."""
    prompt = await engine.tokenize(Chat((ChatMessage("user", question),)))
    request = GenerationRequest("own", tuple(prompt), ANSWER_TOKENS)
    ids: list[int] = []
    async for output in engine.generate(request, prompt, 0, 0):
        ids += output.outputs[0].token_ids
    return ids, tokenizer.decode(ids)


async def _ask(client: SidecacheClient, question: str) -> Completion:
    off = pb.CacheControl(mode=pb.CACHE_MODE_BYPASS)
    return await client.complete(question, max_tokens=ANSWER_TOKENS, cache=off)


def _ids(answer: Completion) -> list[int]:
    return list(answer.token_ids)
