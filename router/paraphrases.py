"""Waiting for the answer to a question that means the same, which is being generated.

The sidecar names the question with a miss; it has compared the two as it compares with
stored ones. Nothing is shared from the running stream: once the answer is stored, the
cache is asked again, and serves it as a hit by meaning or does not. Off unless
``flights.paraphrase_wait_s`` is set.
"""

import asyncio
from collections.abc import Callable

import grpc

from observability.metrics.router import ParaphraseMetrics
from router.cache_client import Cache, Hit, Miss
from router.ticket import Ticket
from sidecache.v1 import cache_pb2, cache_pb2_grpc

# Of the time that a caller has, so that the rest is left to generate in.
_SHARE_OF_DEADLINE = 0.5


class _Awaited:
    """One question, for all of this router's callers that wait for it."""

    def __init__(self, task: asyncio.Task[bool]) -> None:
        self.task = task
        self.callers = 0


class Paraphrases:
    """Who waits for which question.

    Args:
        channel: to the sidecar.
        cache: is asked again when a wait is over.
        wait_s: longest wait of one caller, all his waits together.
        metrics: counts what came of the waits.
    """

    def __init__(
        self, channel: grpc.aio.Channel, cache: Cache, wait_s: float, metrics: ParaphraseMetrics
    ) -> None:
        self._stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._cache = cache
        self._wait_s = wait_s
        self._metrics = metrics
        self._awaited: dict[tuple[str, bytes], _Awaited] = {}

    async def settle(
        self, ticket: Ticket, missed: Miss, looks_again: Callable[[], None]
    ) -> Hit | Miss:
        """What the cache says when the question it named has been answered.

        Args:
            ticket: who waits.
            missed: what the cache said first.
            looks_again: called before each further lookup.

        Returns:
            A hit, or a miss that names no question any more: this request is to generate.
        """
        clock = asyncio.get_running_loop().time
        until_s = clock() + min(self._wait_s, ticket.timeout_s * _SHARE_OF_DEADLINE)
        outcome: Hit | Miss = missed
        while isinstance(outcome, Miss) and outcome.paraphrase is not None:
            awaited = ticket.tenant, outcome.paraphrase.exact
            may_wait = await self._until_ended(awaited, until_s - clock())
            is_late = not may_wait or clock() >= until_s
            looks_again()
            outcome = await self._cache.lookup(ticket, awaits=not is_late)
            if isinstance(outcome, Hit):
                self._metrics.waited("hit")
            else:
                self._metrics.waited("late" if is_late else "miss")
        return outcome

    async def _until_ended(self, key: tuple[str, bytes], timeout_s: float) -> bool:
        """Return when the question is under way no more, or after a time.

        Returns:
            Whether one can wait: a sidecar that refuses would do so again at once.
        """
        awaited = self._awaited.get(key)
        if awaited is None:
            task = asyncio.create_task(self._ask(key), name="await paraphrase")
            awaited = self._awaited[key] = _Awaited(task)
        awaited.callers += 1
        try:
            await asyncio.wait((awaited.task,), timeout=max(0.0, timeout_s))
        finally:
            awaited.callers -= 1
            if not awaited.callers:
                awaited.task.cancel()
            is_over = not awaited.callers or awaited.task.done()
            if is_over and self._awaited.get(key) is awaited:
                del self._awaited[key]
        task = awaited.task
        return not task.done() or task.cancelled() or task.result()

    async def _ask(self, key: tuple[str, bytes]) -> bool:
        """Wait at the sidecar; False: it does not let one."""
        request = cache_pb2.AwaitFlightRequest(tenant=key[0], exact=key[1])
        try:
            await self._stub.AwaitFlight(request, timeout=self._wait_s)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return True
