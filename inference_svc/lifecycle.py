"""Whether a worker takes requests, and the streams it is running."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference_svc.coalesce import Coalescer
from sidecache.errors import Draining, SidecacheError


class Lifecycle:
    """Admits streams until the worker drains or its engine dies; ends what is left.

    Args:
        closed: called once, when no more requests are taken.
    """

    def __init__(self, closed: Callable[[], None]) -> None:
        self._closed = closed
        self._streams: set[Coalescer] = set()
        self._refusal: SidecacheError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def check_open(self) -> None:
        """Raise why the worker takes no requests, if it takes none."""
        if self._refusal is not None:
            # A new one each time: an exception that is raised twice collects tracebacks.
            raise type(self._refusal)(self._refusal.text)

    @contextmanager
    def running(self, stream: Coalescer) -> Iterator[None]:
        """Count a stream for as long as the block runs."""
        self._streams.add(stream)
        self._idle.clear()
        try:
            yield
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._idle.set()

    def close(self, refusal: SidecacheError) -> None:
        """Take no more requests; the first reason given stays."""
        if self._refusal is None:
            self._refusal = refusal
            self._closed()

    async def drain(self, grace_s: float) -> int:
        """Admit nothing more and wait for the running streams.

        Args:
            grace_s: after this many seconds what still runs is ended as Draining.

        Returns:
            How many streams were cut off.
        """
        self.draining = True
        self.close(Draining("this worker drains; ask another one"))
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            left = list(self._streams)
            for stream in left:
                stream.fail(Draining("this worker drains and the grace period is over"))
            return len(left)
        return 0
