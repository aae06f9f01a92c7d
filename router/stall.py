"""Cuts a stream off when one of its sides has been silent for too long.

Costs two assignments a message and one timer a stream; re-arming a timer for
every message, as asyncio.timeout would, is what this avoids.
"""

import asyncio
from types import TracebackType
from typing import Self

from sidecache.errors import EngineFailed, SidecacheError, StreamInterrupted


class StallGuard:
    """Bounds the two waits of a relay: for the worker, and for the reader.

    A context manager around the relay, which says before each wait whom it
    waits for. A wait over its bound cancels the task inside the block, and the
    block raises what that wait stands for.

    Attributes:
        is_over: the block was left.

    Raises:
        EngineFailed: from the block; the worker sent nothing for ``answer_s``, or, after
            :meth:`has_answered`, for ``worker_s``, or, after :meth:`has_tokens`, for
            ``between_tokens_s``.
        StreamInterrupted: from the block; the client took nothing for ``reader_s``.
    """

    def __init__(
        self,
        worker_s: float,
        reader_s: float,
        between_tokens_s: float | None = None,
        answer_s: float | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._after_answer_s = worker_s
        self._worker_s = worker_s if answer_s is None else min(answer_s, worker_s)
        self._reader_s = reader_s
        self._between_tokens_s = worker_s if between_tokens_s is None else between_tokens_s
        # How often to look: the bound may become the smallest of them meanwhile.
        self._shortest_s = min(self._worker_s, reader_s, self._between_tokens_s)
        self._has_answered = False
        self._on_reader = False
        self._since = self._loop.time()
        self._fired = False
        self._why: SidecacheError | None = None
        self.is_over = False

    @property
    def worker_stalled(self) -> bool:
        """Whether the block was left because the wait for the worker was over its bound."""
        return self._fired and not self._on_reader and self._why is None

    def has_answered(self) -> None:
        """The worker has said its first word; said again, it changes nothing."""
        if not self._has_answered:
            self._has_answered = True
            self._worker_s = self._after_answer_s

    def has_tokens(self) -> None:
        """From now on the worker's silence is bounded by the time between tokens."""
        self._worker_s = self._between_tokens_s

    def waits_for_worker(self) -> None:
        """The next wait is for a message of the worker."""
        self._on_reader = False
        self._since = self._loop.time()

    def waits_for_reader(self) -> None:
        """The next wait is for the client to take a message."""
        self._on_reader = True
        self._since = self._loop.time()

    def leave(self, why: SidecacheError) -> bool:
        """Have the block raise this, unless the wait is for the reader; whether it will."""
        if self._fired or self._on_reader or self.is_over:
            return False
        self._fired, self._why = True, why
        self._task.cancel()
        return True

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stall guard needs a task to watch")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_at(self._since + self._shortest_s, self._check)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self.is_over = True
        # Fired, and nobody else cancelled the task meanwhile: the cancellation is ours.
        if self._fired and self._task.uncancel() <= self._cancelling:
            if self._on_reader:
                raise StreamInterrupted(
                    f"cut off: the client read nothing for {self._reader_s:g} s",
                    why="reader_stalled",
                ) from error
            if self._why is not None:
                raise self._why from error
            raise EngineFailed(f"the worker sent nothing for {self._worker_s:g} s") from error

    def _check(self) -> None:
        due = self._since + (self._reader_s if self._on_reader else self._worker_s)
        now = self._loop.time()
        if self._fired:
            return
        if now >= due:
            self._fired = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(min(due, now + self._shortest_s), self._check)
