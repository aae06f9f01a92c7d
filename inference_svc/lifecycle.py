"""Whether a worker takes requests, and the streams it is running."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference_svc.messages import Messages
from sidecache.errors import Draining, SidecacheError


class Lifecycle:
    """Admits streams until the worker drains or its engine dies; ends what is left."""

    def __init__(self) -> None:
        self._when_closed: list[Callable[[], None]] = []
        self._streams: set[Messages] = set()
        self._refusal: SidecacheError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def streams(self) -> int:
        """How many run now."""
        return len(self._streams)

    def check_open(self) -> None:
        """Raise why the worker takes no requests, if it takes none."""
        if self._refusal is not None:
            # A new one each time: an exception that is raised twice collects tracebacks.
            raise type(self._refusal)(self._refusal.text)

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Have this called once, when no more requests are taken."""
        self._when_closed.append(tell)

    @contextmanager
    def running(self, stream: Messages) -> Iterator[None]:
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
            for tell in self._when_closed:
                tell()

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
