"""Embedding off the event loop, in micro-batches, each text once.

While one batch runs on the embedding thread, the texts that arrive form the
next one: nobody waits for a timer, and a lone text never waits for company.
A batch holds texts of similar length, because every row of a batch costs as
much as its longest.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from cache_svc.embedder import Embedder, EmbeddingFailed, NotComparable
from cache_svc.owned_task import owned_task
from cache_svc.vector_index import Vector, VectorRefused, check_vector
from sidecache.errors import Overloaded, SidecacheError

# A vector, or None for a text that the embedder cannot see all of.
Embedded = Vector | None


class _Waiting:
    """One text in the queue and everybody who waits for its vector."""

    __slots__ = ("text", "vector", "waiters")

    def __init__(self, text: str, vector: asyncio.Future[Embedded]) -> None:
        self.text = text
        self.vector = vector
        self.waiters = 0


class EmbeddingQueue:
    """Vectors of texts; open it as a context, which owns its thread and its task.

    Args:
        embedder: used from the queue's own thread only.
        max_batch: most texts of one run of the model.
        max_waiting: most texts in the queue; more are refused at once.
        max_text_bytes: longer texts are not comparable, and not even tokenized.
        kept_vectors: how many vectors are kept, so that a miss and the store that
            follows it embed once.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_batch: int,
        max_waiting: int,
        max_text_bytes: int,
        kept_vectors: int,
    ) -> None:
        self._embedder = embedder
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_text_bytes = max_text_bytes
        self._kept_vectors = kept_vectors
        self._kept: OrderedDict[bytes, Embedded] = OrderedDict()
        self._waiting: OrderedDict[bytes, _Waiting] = OrderedDict()
        self._running: dict[bytes, _Waiting] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding")
        self.embedded_texts = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        embedder: Embedder,
        *,
        max_batch: int,
        max_waiting: int,
        max_text_bytes: int,
        kept_vectors: int,
    ) -> AsyncIterator["EmbeddingQueue"]:
        """A running queue; leaving the block fails whoever still waits."""
        queue = cls(
            embedder,
            max_batch=max_batch,
            max_waiting=max_waiting,
            max_text_bytes=max_text_bytes,
            kept_vectors=kept_vectors,
        )
        try:
            async with owned_task(queue._run(), "embedding queue"):
                yield queue
        finally:
            queue._close()

    @property
    def dimension(self) -> int:
        """Length of every vector."""
        return self._embedder.dimension

    @property
    def fingerprint(self) -> str:
        """The embedder's fingerprint."""
        return self._embedder.fingerprint

    async def vector(self, text: str) -> Vector:
        """The unit vector of a text.

        Raises:
            NotComparable: the text is empty, or beyond what the embedder sees.
            Overloaded: too many texts are waiting.
            EmbeddingFailed: the embedder broke or returned no vector.
        """
        if not self._could_fit(text):
            raise NotComparable(f"the text is empty or over {self._max_text_bytes} bytes")
        key = self._text_key(text)
        if key in self._kept:
            self._kept.move_to_end(key)
            embedded = self._kept[key]
        else:
            embedded = await self._wait_for(key, text)
        if embedded is None:
            raise NotComparable("the text is beyond what the embedder sees")
        return embedded

    def _could_fit(self, text: str) -> bool:
        """A check that costs nothing, before any work is done on a huge prompt."""
        limit = self._max_text_bytes
        if not text or len(text) > limit:
            return False
        return text.isascii() or len(text.encode()) <= limit

    def _text_key(self, text: str) -> bytes:
        fingerprint = self._embedder.fingerprint.encode()
        return hashlib.blake2b(text.encode(), digest_size=16, key=fingerprint[:64]).digest()

    async def _wait_for(self, key: bytes, text: str) -> Embedded:
        waiting = self._running.get(key) or self._waiting.get(key)
        if waiting is None:
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} texts wait to be embedded already")
            waiting = _Waiting(text, asyncio.get_running_loop().create_future())
            self._waiting[key] = waiting
            self._arrived.set()
        waiting.waiters += 1
        try:
            # Shielded: one caller's deadline must not take the vector from the others.
            return await asyncio.shield(waiting.vector)
        finally:
            waiting.waiters -= 1
            if not waiting.waiters and self._waiting.get(key) is waiting:
                del self._waiting[key]  # nobody wants it any more and no batch has it yet
                waiting.vector.cancel()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._running = self._next_batch()
            if self._running:
                await self._embed(self._running)
                self._running = {}
            if not self._waiting:
                self._arrived.clear()

    def _next_batch(self) -> dict[bytes, _Waiting]:
        """The text that waits longest, with those nearest to it in length."""
        if not self._waiting:
            return {}
        first = len(next(iter(self._waiting.values())).text)
        by_length = sorted(self._waiting.items(), key=lambda item: abs(len(item[1].text) - first))
        batch = dict(by_length[: self._max_batch])
        for key in batch:
            del self._waiting[key]
        return batch

    async def _embed(self, batch: dict[bytes, _Waiting]) -> None:
        loop = asyncio.get_running_loop()
        texts = [waiting.text for waiting in batch.values()]
        try:
            embedded = await loop.run_in_executor(self._thread, self._embed_blocking, texts)
        except asyncio.CancelledError:
            _fail(batch, EmbeddingFailed("the embedding queue was closed"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever broke, the waiters must hear of it
            _fail(batch, _as_failure(error))
            return
        for (key, waiting), vector in zip(batch.items(), embedded, strict=True):
            self._keep(key, vector)
            waiting.vector.set_result(vector)
        self.embedded_texts += len(batch)

    def _embed_blocking(self, texts: list[str]) -> list[Embedded]:
        """On the embedding thread: a vector for each text that fits, None for the others."""
        fits = [self._embedder.can_embed(text) for text in texts]
        seen = [text for text, fit in zip(texts, fits, strict=True) if fit]
        rows = iter(self._embedder.embed(seen)) if seen else iter(())
        dimension = self._embedder.dimension
        return [check_vector(next(rows), dimension)[0] if fit else None for fit in fits]

    def _keep(self, key: bytes, vector: Embedded) -> None:
        self._kept[key] = vector
        while len(self._kept) > self._kept_vectors:
            self._kept.popitem(last=False)

    def _close(self) -> None:
        _fail(self._waiting, EmbeddingFailed("the embedding queue was closed"))
        self._waiting.clear()
        # A batch under way cannot be interrupted; its thread ends with it.
        self._thread.shutdown(wait=False, cancel_futures=True)


def _as_failure(error: Exception) -> SidecacheError:
    if isinstance(error, VectorRefused):
        return EmbeddingFailed(f"the embedder returned no unit vector: {error.text}")
    if isinstance(error, EmbeddingFailed):
        return error
    return EmbeddingFailed(f"the embedder failed: {type(error).__name__}")


def _fail(batch: dict[bytes, _Waiting], error: SidecacheError) -> None:
    for waiting in batch.values():
        if not waiting.vector.done():
            waiting.vector.set_exception(error)
            # Whoever gave up waiting must not turn this into an "exception was
            # never retrieved" report.
            waiting.vector.exception()
