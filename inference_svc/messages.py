"""A stream as its writer takes it: how an engine's tokens become messages.

An engine that merges by itself what nobody has taken is read when a message is due
(:class:`Paced`); any other one is read ahead and merged by a :class:`Coalescer`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, Self

from inference_svc.coalesce import Coalescer
from inference_svc.engine import MergingStream, TokenDelta
from sidecache.errors import SidecacheError


class Messages(Protocol):
    """A stream as its writer takes it; an async context manager."""

    @property
    def complete(self) -> bool:
        """Whether everything was taken and the engine ended the stream well."""

    def fail(self, error: SidecacheError) -> None:
        """End the stream with this error; what waits is still handed over."""

    async def take(self, timeout_s: float) -> TokenDelta | None:
        """The next delta, merged from what has come; None if nothing came in time.

        Also None when the stream just became :attr:`complete`.

        Raises:
            SidecacheError: the engine failed, after everything it gave was taken.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def messages(
    deltas: AsyncIterator[TokenDelta], max_tokens: int, distance_s: Callable[[], float]
) -> Messages:
    """An engine's stream, to be written; the arguments are :class:`Coalescer`'s."""
    if isinstance(deltas, MergingStream):
        return Paced(deltas, max_tokens, distance_s)
    return Coalescer(deltas, max_tokens, distance_s)


class Paced:
    """Reads a stream that merges by itself, only when the next message is due.

    The arguments are :class:`Coalescer`'s.
    """

    def __init__(
        self, deltas: MergingStream, max_tokens: int, distance_s: Callable[[], float]
    ) -> None:
        self._deltas = deltas
        self._max_tokens = max_tokens
        self._distance_s = distance_s
        self._loop = asyncio.get_running_loop()
        self._due = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return

    @property
    def complete(self) -> bool:
        return self._deltas.over

    def fail(self, error: SidecacheError) -> None:
        self._deltas.end(error)

    async def take(self, timeout_s: float) -> TokenDelta | None:
        await self._deltas.rest(self._due)
        delta = await self._deltas.take(self._max_tokens, timeout_s)
        if delta is not None:
            self._due = self._loop.time() + self._distance_s()
        return delta
