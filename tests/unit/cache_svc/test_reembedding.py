"""A change of embedder: two generations of vectors never meet, and nobody starves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from cache_svc.departures import Departures
from cache_svc.embedder import Embedder
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.faiss_index import FaissIndex
from cache_svc.quarantine import Quarantine
from cache_svc.reembedding import OVERLOAD_PAUSE_S, Progress, Reembedding
from cache_svc.scoped_index import ScopedIndex
from cache_svc.stats import Stats
from cache_svc.store import MemoryStore, Removal
from cache_svc.vector_index import Matrix
from tests.fixtures.cache import HashEmbedder, TurnedClock, entry_of, key_of

TEXTS = [
    "How do I reset my password?",
    "When will my card arrive?",
    "Which currencies can I hold?",
    "Why was my transfer declined?",
    "Can I get a second card?",
    "How long does a refund take?",
]


class Rotated:
    """Another embedder of the same quality: the same vectors in a space turned at random."""

    def __init__(self, embedder: Embedder) -> None:
        random = np.random.default_rng(0)
        shape = (embedder.dimension, embedder.dimension)
        turn, _ = np.linalg.qr(random.standard_normal(shape))
        self._turn = turn.astype(np.float32)
        self._embedder = embedder
        self.dimension = embedder.dimension
        self.fingerprint = f"rotated {embedder.fingerprint}"

    def can_embed(self, text: str) -> bool:
        return self._embedder.can_embed(text)

    def embed(self, texts: Sequence[str]) -> Matrix:
        vectors: Matrix = self._embedder.embed(texts) @ self._turn
        return vectors


@dataclass
class Generation:
    """A store that a restart has filled, and the index of the embedder used since."""

    store: MemoryStore
    index: ScopedIndex
    queue: EmbeddingQueue
    quarantine: Quarantine
    clock: TurnedClock
    slept: list[float]

    def reembedding(self, share: float = 0.5) -> Reembedding:
        async def sleep(duration_s: float) -> None:
            self.slept.append(duration_s)
            self.clock.now_s += duration_s
            await asyncio.sleep(0)

        return Reembedding(
            self.store,
            lambda entry, _: self.store.put(entry),
            self.index,
            self.queue,
            self.quarantine,
            share=share,
            clock=self.clock,
            sleep=sleep,
        )

    def fill(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Entries as a restart with another embedder leaves them: without vectors."""
        for number, text in enumerate(texts):
            self.store.put(entry_of(number, text, vector_dimension=0, ttl_s=1e9))
        return [("acme", number) for number in range(len(texts))]

    async def similarity(self, text: str) -> float:
        """Of the nearest neighbour in the index; -1 when there is none."""
        vector = await self.queue.vector(text)
        found = await self.index.search(key_of(text).place, vector, 1)
        return found[0].similarity if found else -1.0


@asynccontextmanager
async def generation(embedder: Embedder, *, max_waiting: int = 64) -> AsyncIterator[Generation]:
    with ThreadPoolExecutor(1) as executor:
        dimension, clock = embedder.dimension, TurnedClock()
        index = ScopedIndex(
            dimension, lambda _place: FaissIndex(dimension), executor, inline_rows=10_000
        )
        store = MemoryStore(1 << 24, clock, Departures(index, Stats()))
        async with EmbeddingQueue.open(
            embedder, max_batch=4, max_waiting=max_waiting, max_text_bytes=4096, kept_vectors=16
        ) as queue:
            yield Generation(store, index, queue, Quarantine(10), clock, [])


async def test_new_embedder_finds_everything_again(minilm_path: Path) -> None:
    """Old answers are found by their own texts' new vectors, and by no others on the way."""
    real = OnnxEmbedder(minilm_path)
    async with generation(Rotated(real)) as new:
        stale = new.fill(TEXTS)
        assert [await new.similarity(text) for text in TEXTS] == [-1.0] * len(TEXTS)
        await new.reembedding().run(stale[:3])
        assert await new.similarity(TEXTS[0]) == pytest.approx(1, abs=1e-4)
        assert await new.similarity(TEXTS[5]) < 0.8
        # A vector of the old embedder is nobody's neighbour in the new space.
        (old,) = real.embed([TEXTS[0]])
        found = await new.index.search(key_of(TEXTS[0]).place, old, 1)
        assert found[0].similarity < 0.5
        progress = await new.reembedding().run(stale[3:])
        assert progress == Progress(embedded=3)
        similarities = [await new.similarity(text) for text in TEXTS]
        assert similarities == pytest.approx([1] * len(TEXTS), abs=1e-4)


async def test_answers_keep_their_life_and_stay_in_step() -> None:
    """A renewed entry has the old answer and the old end of life, and leaves both tiers at once."""
    async with generation(HashEmbedder()) as new:
        stale = new.fill(["one"])
        before = new.store.get("acme", 0)
        assert before is not None
        await new.reembedding().run(stale)
        after = new.store.find("acme", before.key.exact)
        assert after is not None
        assert after == replace(before, id=after.id, vector_dimension=16)
        assert new.store.usage().entries == len(new.index) == 1
        new.store.remove([after], Removal.INVALIDATED)
        assert len(new.index) == 0


async def test_what_may_not_be_compared_is_left_alone() -> None:
    """Gone, barred, textless, too long and already embedded entries are passed over."""
    async with generation(HashEmbedder()) as new:
        stale = new.fill(["fine", "barred", "word " * 300, ""])
        new.store.put(entry_of(4, "has a vector", ttl_s=600))
        new.quarantine.bar(key_of("barred"))
        progress = await new.reembedding().run([*stale, ("acme", 4), ("acme", 99)])
        assert progress == Progress(embedded=1, skipped=5)
        assert len(new.index) == 1


async def test_entry_that_leaves_while_embedded_stays_gone() -> None:
    """An answer invalidated during its embedding does not come back."""
    async with generation(HashEmbedder()) as new:
        stale = new.fill(["one"])
        running = asyncio.create_task(new.reembedding().run(stale))
        while new.queue._background.is_free.is_set():
            await asyncio.sleep(0)
        entry = new.store.get("acme", 0)
        assert entry is not None
        new.store.remove([entry], Removal.INVALIDATED)
        assert await running == Progress(skipped=1)
        assert new.store.usage().entries == len(new.index) == 0


class SlowEmbedder(HashEmbedder):
    """Each text takes two seconds of the clock."""

    def __init__(self, clock: TurnedClock) -> None:
        super().__init__()
        self._clock = clock

    def embed(self, texts: Sequence[str]) -> Matrix:
        self._clock.now_s += 2.0 * len(texts)
        return super().embed(texts)


async def test_lookups_keep_their_share_of_the_embedder() -> None:
    """With a share of a fifth, every embedding is followed by a rest of four times its length."""
    clock = TurnedClock()
    async with generation(SlowEmbedder(clock)) as new:
        new.clock = clock
        await new.reembedding(share=0.2).run(new.fill(["one", "two", "three"]))
        assert new.slept == pytest.approx([8.0, 8.0, 8.0])


class HeldEmbedder(HashEmbedder):
    """Embeds when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.released = Event()

    def embed(self, texts: Sequence[str]) -> Matrix:
        assert self.released.wait(10)
        return super().embed(texts)


async def test_busy_embedder_is_waited_for() -> None:
    """A full queue delays the work and costs no entry its vector."""
    embedder = HeldEmbedder()
    async with generation(embedder, max_waiting=1) as new:
        lookups = []
        for text in ("a", "b"):  # one runs, one waits, and the queue is full
            lookups.append(asyncio.create_task(new.queue.vector(text, in_background=True)))
            while not new.queue._background._running:
                await asyncio.sleep(0)
        running = asyncio.create_task(new.reembedding().run(new.fill(["one"])))
        while OVERLOAD_PAUSE_S not in new.slept:
            await asyncio.sleep(0)
        embedder.released.set()
        assert await running == Progress(embedded=1)
        await asyncio.gather(*lookups)


async def test_broken_embedder_costs_no_answer() -> None:
    """An entry whose text cannot be embedded keeps its exact hits."""
    embedder = HashEmbedder()
    async with generation(embedder) as new:
        embedder.failure = RuntimeError("out of memory")
        assert await new.reembedding().run(new.fill(["one"])) == Progress(failed=1)
        assert new.store.get("acme", 0) is not None


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_share_is_refused(share: float) -> None:
    """A share that is none is named and refused."""
    with pytest.raises(ValueError, match="share is"):
        Reembedding(None, None, None, None, None, share=share)  # type: ignore[arg-type]
