"""The embedding queue's two lanes: nobody who waits stands behind what nobody waits for."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.judge import AnswerJudge
from cache_svc.vector_index import Matrix, Vector
from sidecache.errors import Overloaded
from tests.fixtures.cache import HashEmbedder

_LONG_S = 60.0


class HeldTexts(HashEmbedder):
    """An embedder whose runs of named texts wait for the test to let them go."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.go = {text: threading.Event() for text in held}
        self._started = {text: threading.Event() for text in held}

    def embed(self, texts: Sequence[str]) -> Matrix:
        for text in texts:
            if text in self.go:
                self._started[text].set()
                assert self.go[text].wait(10)
        return super().embed(texts)

    async def begun(self, text: str) -> None:
        """Return when this text is being embedded."""
        assert await asyncio.to_thread(self._started[text].wait, 10)


@asynccontextmanager
async def opened(
    embedder: HeldTexts, *, max_waiting: int = 8, max_stood_back_s: float = _LONG_S
) -> AsyncIterator[EmbeddingQueue]:
    try:
        async with EmbeddingQueue.open(
            embedder,
            max_batch=4,
            max_waiting=max_waiting,
            max_text_bytes=100,
            kept_vectors=16,
            max_stood_back_s=max_stood_back_s,
        ) as queue:
            yield queue
    finally:
        for go in embedder.go.values():
            go.set()


async def _asked(queue: EmbeddingQueue, text: str, *, in_background: bool) -> asyncio.Task[Vector]:
    task = asyncio.create_task(queue.vector(text, in_background=in_background))
    await asyncio.sleep(0)
    return task


async def test_a_lookup_does_not_wait_for_the_background() -> None:
    """Its vector comes while the background's run is still under way."""
    held = HeldTexts("answer")
    async with opened(held) as queue:
        learning = await _asked(queue, "answer", in_background=True)
        await held.begun("answer")
        await queue.vector("question")
        assert not learning.done()
        held.go["answer"].set()
        await learning
    assert held.batches == [["question"], ["answer"]]


async def test_the_background_begins_when_no_lookup_needs_the_embedder() -> None:
    """Also where it came before the lookups that wait behind the one that runs."""
    held = HeldTexts("running")
    async with opened(held) as queue:
        running = await _asked(queue, "running", in_background=False)
        await held.begun("running")
        learning = await _asked(queue, "answer", in_background=True)
        later = await _asked(queue, "a much longer question than that", in_background=False)
        held.go["running"].set()
        await asyncio.gather(running, learning, later)
    assert held.batches == [["running"], ["a much longer question than that"], ["answer"]]


async def test_the_background_has_its_turn_beside_lookups_that_never_end() -> None:
    """It stands back for a bounded time only."""
    held = HeldTexts("running")
    async with opened(held, max_stood_back_s=0.001) as queue:
        running = await _asked(queue, "running", in_background=False)
        await held.begun("running")
        await queue.vector("answer", in_background=True)
        assert not running.done()
        held.go["running"].set()
        await running


async def test_a_lookup_takes_its_text_out_of_the_background() -> None:
    """Who asks for what waits there overtakes it, and both get the one vector."""
    held = HeldTexts("answer")
    async with opened(held) as queue:
        first = await _asked(queue, "answer", in_background=True)
        await held.begun("answer")
        stored = await _asked(queue, "question", in_background=True)
        asked = await queue.vector("question")
        assert np.array_equal(await stored, asked)
        assert not first.done()
        held.go["answer"].set()
        await first
    assert held.batches == [["question"], ["answer"]]


async def test_a_refused_lookup_leaves_its_text_in_the_background() -> None:
    """Where too many lookups wait, whoever waited for the text before still gets it."""
    held = HeldTexts("answer", "running")
    async with opened(held, max_waiting=1) as queue:
        learning = await _asked(queue, "answer", in_background=True)
        await held.begun("answer")
        stored = await _asked(queue, "question", in_background=True)
        running = await _asked(queue, "running", in_background=False)
        await held.begun("running")
        waiting = await _asked(queue, "waiting", in_background=False)
        with pytest.raises(Overloaded):
            await queue.vector("question")
        for go in held.go.values():
            go.set()
        await asyncio.gather(learning, stored, running, waiting)


async def test_an_abandoned_background_text_is_not_embedded() -> None:
    """It frees its place like any other."""
    held = HeldTexts("answer")
    async with opened(held) as queue:
        learning = await _asked(queue, "answer", in_background=True)
        await held.begun("answer")
        gone = await _asked(queue, "gone", in_background=True)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        held.go["answer"].set()
        await asyncio.gather(learning, queue.vector("later", in_background=True))
    assert held.batches == [["answer"], ["later"]]


async def test_the_judge_stands_behind_lookups() -> None:
    """Comparing answers is nothing that a caller waits for."""
    held = HeldTexts("running")
    async with opened(held) as queue:
        running = await _asked(queue, "running", in_background=False)
        await held.begun("running")
        judge = AnswerJudge(queue, 0.8, 50)
        judging = asyncio.create_task(judge.same("one answer", "another answer"))
        later = await _asked(queue, "question", in_background=False)
        held.go["running"].set()
        await asyncio.gather(running, later)
        assert not await judging
    assert held.batches == [["running"], ["question"], ["one answer"], ["another answer"]]
