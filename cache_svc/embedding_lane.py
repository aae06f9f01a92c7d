"""One thread of the embedding queue: texts that wait for it, a batch at a time.

While one batch runs, the texts that arrive form the next one: nobody waits for a
timer, and a lone text never waits for company. A batch holds texts of similar
length, because every row of a batch costs as much as its longest.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cache_svc.embedder import EmbeddingFailed
from cache_svc.vector_index import Vector, VectorRefused
from sidecache.errors import Overloaded, SidecacheError

# A vector, or None for a text that the embedder cannot see all of.
Embedded = Vector | None


class WaitingText:
    """One text in a lane and everybody who waits for its vector."""

    __slots__ = ("text", "vector", "waiters")

    def __init__(self, text: str) -> None:
        self.text = text
        self.vector: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self.waiters = 0


class EmbeddingLane:
    """Texts on their way through the embedder. Used from the event loop only.

    Args:
        name: of its thread.
        embed: what the thread does with a batch; blocking.
        keep: given every vector, before those who wait for it.
        max_batch: most texts of one run.
        max_waiting: most texts that wait; more are refused at once.
        turn: awaited before every run; None: a run begins at once.

    Attributes:
        is_free: set while nothing waits or runs.
    """

    def __init__(
        self,
        name: str,
        embed: Callable[[Sequence[str]], Sequence[Embedded]],
        keep: Callable[[bytes, Embedded], None],
        *,
        max_batch: int,
        max_waiting: int,
        turn: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._embed_blocking = embed
        self._keep = keep
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._turn = turn
        self._waiting: OrderedDict[bytes, WaitingText] = OrderedDict()
        self._running: dict[bytes, WaitingText] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.is_free = asyncio.Event()
        self.is_free.set()

    def find(self, key: bytes) -> WaitingText | None:
        """The text, if it waits or is being embedded here."""
        return self._running.get(key) or self._waiting.get(key)

    def is_waiting(self, key: bytes) -> bool:
        """Whether the text is in no batch yet."""
        return key in self._waiting

    def add(self, key: bytes, text: WaitingText) -> None:
        """Let a text wait for its turn.

        Raises:
            Overloaded: too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} texts wait to be embedded already")
        self._waiting[key] = text
        self.is_free.clear()
        self._arrived.set()

    def withdraw(self, key: bytes, text: WaitingText) -> bool:
        """Take a text out that no batch has yet; False: it is none of those that wait."""
        if self._waiting.get(key) is not text:
            return False
        del self._waiting[key]
        return True

    async def run(self) -> None:
        """Embed what arrives until cancelled."""
        while True:
            await self._arrived.wait()
            if self._turn is not None:
                await self._turn()
            self._running = self._next_batch()
            if self._running:
                await self._embed(self._running)
                self._running = {}
            if not self._waiting:
                self._arrived.clear()
                self.is_free.set()

    def close(self) -> None:
        """Fail whoever still waits."""
        _fail(self._waiting, EmbeddingFailed("the embedding queue was closed"))
        self._waiting.clear()
        # A batch under way cannot be interrupted; its thread ends with it.
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> dict[bytes, WaitingText]:
        """The text that waits longest, with those nearest to it in length."""
        if not self._waiting:
            return {}
        first = len(next(iter(self._waiting.values())).text)
        by_length = sorted(self._waiting.items(), key=lambda item: abs(len(item[1].text) - first))
        batch = dict(by_length[: self._max_batch])
        for key in batch:
            del self._waiting[key]
        return batch

    async def _embed(self, batch: dict[bytes, WaitingText]) -> None:
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


def _as_failure(error: Exception) -> SidecacheError:
    if isinstance(error, VectorRefused):
        return EmbeddingFailed(f"the embedder returned no unit vector: {error.text}")
    if isinstance(error, EmbeddingFailed):
        return error
    return EmbeddingFailed(f"the embedder failed: {type(error).__name__}")


def _fail(batch: dict[bytes, WaitingText], error: SidecacheError) -> None:
    for waiting in batch.values():
        if not waiting.vector.done():
            waiting.vector.set_exception(error)
            # Whoever gave up waiting must not turn this into an "exception was
            # never retrieved" report.
            waiting.vector.exception()
