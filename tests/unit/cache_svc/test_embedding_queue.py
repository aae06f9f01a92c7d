"""The embedding queue: micro-batches, off the event loop, each text once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from cache_svc.embedder import EmbeddingFailed, NotComparable
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.vector_index import Matrix
from sidecache.errors import Overloaded
from tests.fixtures.cache import HashEmbedder


class HeldEmbedder(HashEmbedder):
    """An embedder whose runs wait for the test to let them go."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._go = threading.Semaphore(0)

    def embed(self, texts: Sequence[str]) -> Matrix:
        self._loop.call_soon_threadsafe(self.started.set)
        assert self._go.acquire(timeout=10)
        return super().embed(texts)

    def release(self, runs: int = 1) -> None:
        self._go.release(runs)


@pytest.fixture
async def held() -> HeldEmbedder:
    return HeldEmbedder()


@pytest.fixture
async def queue(held: HeldEmbedder) -> AsyncIterator[EmbeddingQueue]:
    async with EmbeddingQueue.open(
        held, max_batch=4, max_waiting=6, max_text_bytes=100, kept_vectors=3
    ) as queue:
        yield queue
        held.release(100)


async def _waiting(queue: EmbeddingQueue, *texts: str) -> list[asyncio.Task[np.ndarray]]:
    tasks = [asyncio.create_task(queue.vector(text)) for text in texts]
    await asyncio.sleep(0)
    return tasks


async def test_what_arrives_during_a_run_forms_the_next(
    queue: EmbeddingQueue, held: HeldEmbedder
) -> None:
    """A lone text starts at once; those that come meanwhile share the next run."""
    first = await _waiting(queue, "one")
    await held.started.wait()
    rest = await _waiting(queue, "two", "three", "four", "five", "six")
    held.release(3)
    await asyncio.gather(*first, *rest)
    assert [len(batch) for batch in held.batches] == [1, 4, 1]


async def test_a_batch_holds_texts_of_similar_length(
    queue: EmbeddingQueue, held: HeldEmbedder
) -> None:
    """A short text does not pay for a long one when others of its length wait."""
    first = await _waiting(queue, "x")
    await held.started.wait()
    rest = await _waiting(queue, "a", "l" * 90, "b", "c", "d")
    held.release(3)
    await asyncio.gather(*first, *rest)
    assert held.batches[1:] == [["a", "b", "c", "d"], ["l" * 90]]


async def test_equal_texts_are_embedded_once(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """Concurrent and later requests for one text share one run of the model."""
    tasks = await _waiting(queue, "same", "same")
    await held.started.wait()
    tasks += await _waiting(queue, "same")
    held.release()
    vectors = await asyncio.gather(*tasks)
    assert held.batches == [["same"]]
    assert all(np.array_equal(vectors[0], vector) for vector in vectors)
    await queue.vector("same")
    assert held.batches == [["same"]]


async def test_kept_vectors_are_bounded(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """Only the latest vectors are kept."""
    held.release(6)
    for text in ("a", "b", "c", "d"):
        await queue.vector(text)
    await queue.vector("d")
    assert held.batches == [["a"], ["b"], ["c"], ["d"]]
    await queue.vector("a")
    assert held.batches[-1] == ["a"]


async def test_full_queue_refuses(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """A text too many is refused at once and disturbs nobody."""
    tasks = await _waiting(queue, "running")
    await held.started.wait()
    tasks += await _waiting(queue, *(f"text {i}" for i in range(6)))
    with pytest.raises(Overloaded):
        await queue.vector("one too many")
    held.release(3)
    await asyncio.gather(*tasks)


async def test_abandoned_texts_are_not_embedded(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """A caller that gave up before its run frees its place; one of two does not."""
    running = await _waiting(queue, "running")
    await held.started.wait()
    gone, shared_gone, shared = await _waiting(queue, "gone", "shared", "shared")
    gone.cancel()
    shared_gone.cancel()
    await asyncio.gather(gone, shared_gone, return_exceptions=True)
    held.release(2)
    await asyncio.gather(*running, shared)
    assert held.batches == [["running"], ["shared"]]


async def test_cancel_during_a_run_keeps_the_vector(
    queue: EmbeddingQueue, held: HeldEmbedder
) -> None:
    """A lookup that ran out of time still pays for the store that follows it."""
    (task,) = await _waiting(queue, "text")
    await held.started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    held.release()
    await queue.vector("text")
    assert held.batches == [["text"]]


@pytest.mark.parametrize("text", ["", "x" * 101, "é" * 51, "x" * 1_000_000])
async def test_texts_out_of_bounds_cost_nothing(
    queue: EmbeddingQueue, held: HeldEmbedder, text: str
) -> None:
    """Empty and long texts are refused before any work is done."""
    with pytest.raises(NotComparable):
        await queue.vector(text)
    assert not held.started.is_set()


async def test_text_beyond_the_window(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """A text the embedder cannot see all of is not comparable; its batch goes on."""
    held.can_embed = lambda text: text != "long"  # type: ignore[method-assign]
    running = await _waiting(queue, "running")
    await held.started.wait()
    long, good = await _waiting(queue, "long", "good")
    held.release(2)
    await asyncio.gather(*running, good)
    with pytest.raises(NotComparable):
        await long


async def test_failures_reach_their_waiters_only(queue: EmbeddingQueue, held: HeldEmbedder) -> None:
    """A model that raises or returns NaN fails that run; the next one works again."""
    held.release(10)
    held.failure = RuntimeError("secret prompt inside")
    with pytest.raises(EmbeddingFailed, match="RuntimeError") as raised:
        await queue.vector("a")
    assert "secret" not in raised.value.text
    held.failure, held.spoiled = None, True
    with pytest.raises(EmbeddingFailed, match="no unit vector"):
        await queue.vector("a")
    held.spoiled = False
    assert await queue.vector("a") is not None


async def test_closing_fails_whoever_waits() -> None:
    """Nobody is left hanging when the queue closes."""
    held = HeldEmbedder()
    async with EmbeddingQueue.open(
        held, max_batch=1, max_waiting=4, max_text_bytes=100, kept_vectors=3
    ) as queue:
        tasks = await _waiting(queue, "running", "waiting")
        await held.started.wait()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    held.release(2)
    assert all(isinstance(result, EmbeddingFailed) for result in results)
