"""Embedding off the event loop, each text once, lookups before everything else.

A caller waits for the vector of his question; nobody waits for the vector of an
answer that the bound on false hits learns from, and that one is longer. A run of the
model cannot be interrupted, so the two have a lane each: the background's runs begin
only while no lookup needs the embedder, and a lookup that comes during one runs beside
it on a thread of its own.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cache_svc.embedder import Embedder, NotComparable
from cache_svc.embedding_lane import Embedded, EmbeddingLane, WaitingText
from cache_svc.owned_task import owned_task
from cache_svc.vector_index import Vector, check_vector

# So long the background stands back for lookups that never end; then it has one run
# beside them, or nothing would be learnt under load.
MAX_STOOD_BACK_S: Final = 0.1


class EmbeddingQueue:
    """Vectors of texts; open it as a context, which owns its threads and its tasks.

    Args:
        embedder: used from the queue's own two threads only.
        max_batch: most texts of one run of the model.
        max_waiting: most texts of lookups in the queue, and as many of the background;
            more are refused at once.
        max_text_bytes: longer texts are not comparable, and not even tokenized.
        kept_vectors: how many vectors are kept, so that a miss and the store that
            follows it embed once.
        max_stood_back_s: longest time that lookups hold up the background.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_batch: int,
        max_waiting: int,
        max_text_bytes: int,
        kept_vectors: int,
        max_stood_back_s: float = MAX_STOOD_BACK_S,
    ) -> None:
        self._embedder = embedder
        self._max_text_bytes = max_text_bytes
        self._kept_vectors = kept_vectors
        self._max_stood_back_s = max_stood_back_s
        self._kept: OrderedDict[bytes, Embedded] = OrderedDict()
        self._awaited = EmbeddingLane(
            "embedding",
            self._embed_blocking,
            self._keep,
            max_batch=max_batch,
            max_waiting=max_waiting,
        )
        self._background = EmbeddingLane(
            "embedding-background",
            self._embed_blocking,
            self._keep,
            max_batch=max_batch,
            max_waiting=max_waiting,
            turn=self._stand_back,
        )

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
        max_stood_back_s: float = MAX_STOOD_BACK_S,
    ) -> AsyncIterator["EmbeddingQueue"]:
        """A running queue; leaving the block fails whoever still waits."""
        queue = cls(
            embedder,
            max_batch=max_batch,
            max_waiting=max_waiting,
            max_text_bytes=max_text_bytes,
            kept_vectors=kept_vectors,
            max_stood_back_s=max_stood_back_s,
        )
        try:
            async with (
                owned_task(queue._awaited.run(), "embedding queue"),
                owned_task(queue._background.run(), "background embedding"),
            ):
                yield queue
        finally:
            queue._awaited.close()
            queue._background.close()

    @property
    def dimension(self) -> int:
        """Length of every vector."""
        return self._embedder.dimension

    @property
    def fingerprint(self) -> str:
        """The embedder's fingerprint."""
        return self._embedder.fingerprint

    async def vector(self, text: str, *, in_background: bool = False) -> Vector:
        """The unit vector of a text.

        Args:
            text: to be embedded.
            in_background: no caller waits for it; whoever has one goes first.

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
            embedded = await self._wait_for(key, text, in_background=in_background)
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

    async def _wait_for(self, key: bytes, text: str, *, in_background: bool) -> Embedded:
        waiting = self._awaited.find(key) or self._background.find(key)
        if waiting is None:
            waiting = WaitingText(text)
            (self._background if in_background else self._awaited).add(key, waiting)
        elif not in_background and self._background.is_waiting(key):
            self._awaited.add(key, waiting)
            self._background.withdraw(key, waiting)
        waiting.waiters += 1
        try:
            # Shielded: one caller's deadline must not take the vector from the others.
            return await asyncio.shield(waiting.vector)
        finally:
            waiting.waiters -= 1
            if not waiting.waiters and self._withdraw(key, waiting):
                waiting.vector.cancel()  # nobody wants it any more and no batch has it yet

    def _withdraw(self, key: bytes, waiting: WaitingText) -> bool:
        return self._awaited.withdraw(key, waiting) or self._background.withdraw(key, waiting)

    async def _stand_back(self) -> None:
        """Return when no lookup needs the embedder, or they have gone first long enough."""
        free = self._awaited.is_free
        if free.is_set():
            return
        try:
            async with asyncio.timeout(self._max_stood_back_s):
                while not free.is_set():
                    await free.wait()
        except TimeoutError:
            return

    def _embed_blocking(self, texts: Sequence[str]) -> list[Embedded]:
        """On a lane's thread: a vector for each text that fits, None for the others."""
        fits = [self._embedder.can_embed(text) for text in texts]
        seen = [text for text, fit in zip(texts, fits, strict=True) if fit]
        rows = iter(self._embedder.embed(seen)) if seen else iter(())
        dimension = self._embedder.dimension
        return [check_vector(next(rows), dimension)[0] if fit else None for fit in fits]

    def _keep(self, key: bytes, vector: Embedded) -> None:
        self._kept[key] = vector
        while len(self._kept) > self._kept_vectors:
            self._kept.popitem(last=False)
