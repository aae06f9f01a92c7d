"""Puts together the tokens that came while the last write was under way.

A message costs far more than a token, so this is the strongest lever on the
cost of a stream (docs/performance.md). The first token goes out at once: when
nothing waits, whatever comes first is taken alone. With many streams a write is
over long before the next token comes, so each stream also keeps a little distance
between its messages; all of them together then stay at a bounded rate.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from inference_svc.engine import TokenDelta
from sidecache.errors import SidecacheError


class Coalescer:
    """Reads an engine's stream ahead of the writer, and hands it over merged: as Messages do.

    What waits is bounded by the request: the engine ends each choice at its
    ``max_tokens``. Use it as an async context manager; it owns the reading task.

    Args:
        deltas: an engine's stream.
        max_tokens: most tokens handed over together. A delta that the engine
            made larger passes whole, since its text cannot be cut.
        distance_s: least time between two messages, asked for after each; a message that
            is full, or that ends a choice, does not wait for it.
    """

    def __init__(
        self,
        deltas: AsyncIterator[TokenDelta],
        max_tokens: int,
        distance_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._deltas = deltas
        self._max_tokens = max_tokens
        self._distance_s = distance_s
        self._loop = asyncio.get_running_loop()
        # When the next message may go that is neither full nor an end.
        self._due = 0.0
        self._waiting_tokens = 0
        self._enough = asyncio.Event()
        self._waiting: deque[TokenDelta] = deque()
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # Not a TaskGroup: its ExceptionGroup would hide what a write raised.
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))

    @property
    def complete(self) -> bool:
        return self._ended and not self._waiting and self._error is None

    def fail(self, error: SidecacheError) -> None:
        self._finish(error)

    async def take(self, timeout_s: float) -> TokenDelta | None:
        if not self._waiting and not self._ended:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if self._waiting:
            if self._due > self._loop.time() and not self._has_enough():
                await self._wait_for_more()
            delta = self._merge()
            self._waiting_tokens -= len(delta.token_ids)
            self._due = self._loop.time() + self._distance_s()
            return delta
        if self._error is not None:
            raise self._error
        return None

    def _has_enough(self) -> bool:
        """Whether more tokens could not make the next message better."""
        if self._ended or self._waiting_tokens >= self._max_tokens:
            return True
        return any(delta.finish_reason is not None for delta in self._waiting)

    async def _wait_for_more(self) -> None:
        self._enough.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._due):
                await self._enough.wait()

    def _merge(self) -> TokenDelta:
        """As many waiting deltas of one choice as fit one message; those of others stay."""
        parts = [self._waiting.popleft()]
        others: list[TokenDelta] = []
        room = self._max_tokens - len(parts[0].token_ids)
        while self._waiting and parts[-1].finish_reason is None:
            following = self._waiting.popleft()
            if following.choice != parts[0].choice:
                others.append(following)
            elif len(following.token_ids) > room:
                others.append(following)
                break
            else:
                room -= len(following.token_ids)
                parts.append(following)
        self._waiting.extendleft(reversed(others))
        return merged(parts)

    async def _read(self) -> None:
        try:
            async for delta in self._deltas:
                self._waiting.append(delta)
                self._waiting_tokens += len(delta.token_ids)
                self._arrived.set()
                if delta.finish_reason is not None or self._waiting_tokens >= self._max_tokens:
                    self._enough.set()
        except Exception as error:  # noqa: BLE001 - raised again where take() is awaited
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._arrived.set()
            self._enough.set()


def merged(parts: Sequence[TokenDelta]) -> TokenDelta:
    """Deltas of one choice that follow each other, at least one, as one delta."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return TokenDelta(
        first.choice,
        first.offset,
        tuple([token_id for part in parts for token_id in part.token_ids]),
        "".join([part.text for part in parts]),
        tuple([logprob for part in parts for logprob in part.logprobs]),
        parts[-1].finish_reason,
        next((n for part in parts if (n := part.cached_prompt_tokens) is not None), None),
    )
