"""The second worker of one request that waits for its first token."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from router.hedging import Hedging
from router.passage import Passage
from router.worker import Worker
from sidecache.errors import Overloaded, Unavailable

# Between two tries to interrupt a first worker whose client is just being written to.
_AGAIN_S = 0.005


class Overtaken(Unavailable):
    """The other worker had its first token sooner; never leaves the relay."""


class Rival:
    """Begins beside the first worker when that is late; whoever speaks first is heard.

    A block around the whole request, at whose end nothing of it is left. The one that
    does not win is cancelled at once. There is one in a request at most.

    Args:
        hedging: says when, and whether.
        begin: asks one more worker, and returns when that has a token to offer; what it puts
            on the stack is undone when the rival is done with.
    """

    def __init__(
        self,
        hedging: Hedging,
        begin: Callable[[ExitStack], Coroutine[Any, Any, Passage]],
    ) -> None:
        self._hedging = hedging
        self._begin = begin
        self._first: Passage | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Passage | None] | None = None
        self._is_taken = False
        self.stack = ExitStack()
        hedging.asked()

    @property
    def has_begun(self) -> bool:
        """Whether two workers were asked."""
        return self._task is not None

    def stand_by(self, first: Passage, workers: Sequence[Worker]) -> None:
        """Begin after a while, unless this worker has spoken or was given up by then.

        Args:
            first: who was asked.
            workers: all that are ready.
        """
        delay_s = None
        if self._task is None and len(workers) > 1:
            delay_s = self._hedging.delay_s(first.ticket.model, workers)
        if delay_s is not None:
            self._first, first.rival = first, self
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._start)

    def stand_down(self) -> None:
        """Do not begin any more."""
        if self._timer is not None:
            self._timer.cancel()

    def first_spoke(self) -> None:
        """The first worker has a token: the other one is to stop."""
        self.stand_down()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._hedging.ended("lost")

    async def winner(self) -> Passage | None:
        """Wait for what it comes to, now that the first worker is out; None: to nothing."""
        if self._task is not None:
            # It may have been cancelled, which is no cancellation of who waits here.
            await asyncio.wait((self._task,))
        return self.has_won()

    def has_won(self) -> Passage | None:
        """Its stream, if it has spoken and the first worker has not; once taken, none."""
        task = self._task
        if task is None or self._is_taken or not task.done() or task.cancelled():
            return None
        return task.result()

    def take(self) -> Passage | None:
        """The same, to be passed on from now on: who loses it goes on elsewhere."""
        passage = self.has_won()
        self._is_taken = self._is_taken or passage is not None
        return passage

    def settle(self, passage: Passage, prompt_tokens: int) -> None:
        """The request has ended well: learn from it, and tell what a second worker cost."""
        if passage.first_token_s is not None:
            self._hedging.took(passage.worker, passage.first_token_s)
        if self.has_begun:
            self._hedging.wasted(prompt_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stand_down()
        if self._task is not None and not self._task.cancel():
            # It had won, and nobody took its stream.
            self.stack.close()

    def _start(self) -> None:
        first = self._first
        if first is not None and self._hedging.may_begin(first.ticket.model):
            self._task = asyncio.create_task(self._run(first), name="hedge")

    async def _run(self, first: Passage) -> Passage | None:
        try:
            passage = await self._begin(self.stack)
            guard = first.guard
            while guard is not None and not guard.is_over and not guard.leave(Overtaken("")):  # noqa: ASYNC110 - a write that ends tells nobody
                await asyncio.sleep(_AGAIN_S)
        except (Unavailable, Overloaded):
            self.stack.close()
            self._hedging.ended("failed")
            return None
        except BaseException:
            # Cancelled: the first one has spoken, or the request is over.
            self.stack.close()
            raise
        self._hedging.ended("won")
        self._hedging.took(first.worker, first.waited_s)
        return passage
