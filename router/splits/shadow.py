"""Shadow traffic: a share of the requests is answered by another model too, for its figures.

Nobody waits for a copy, nothing of it is stored, and its answer is dropped. Copies are
bounded in number and time, and end when the router drains.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from router.pool import WorkerPool
from router.relay import Relay
from router.settings import LimitSettings
from router.splits.settings import ShadowSettings
from router.splits.splits import Splits
from router.tape import Tape
from router.ticket import Ticket
from router.validation import validate
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2 as pb


class _Nobody:
    """The reader of a copy."""

    async def write(self, message: pb.GenerateResponse) -> None:
        # The relay writes in a loop; a client's stream must get its turn between.
        await asyncio.sleep(0)


class Shadows:
    """Sends copies; open for work while :meth:`run` runs.

    Args:
        splits: say which requests have a shadow, and take the results.
        relay: generates.
        pool: knows the shadow's model.
        limits: what the shadow's model is asked for is checked as any request is.
        clock: monotonic seconds.
        draw: a number in [0, 1) for each request.
    """

    def __init__(
        self,
        splits: Splits,
        relay: Relay,
        pool: WorkerPool,
        limits: LimitSettings,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._splits = splits
        self._relay = relay
        self._pool = pool
        self._limits = limits
        self._clock = clock
        self._draw = draw
        self._tasks: asyncio.TaskGroup | None = None
        self._running = 0
        self.dropped = 0

    def reconfigure(self, limits: LimitSettings) -> None:
        """Take new limits; copies under way go on."""
        self._limits = limits

    async def run(self) -> None:
        """Let copies in until cancelled, and cancel those under way."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def copy_soon(self, ticket: Ticket) -> None:
        """Copy a request that goes to a worker, if its split has a shadow and it is drawn."""
        if not ticket.split or self._tasks is None:
            return
        split = self._splits.find(ticket.split)
        shadow = split.settings.shadow if split else None
        if shadow is None or self._draw() >= shadow.share:
            return
        if self._running >= shadow.max_running:
            self.dropped += 1
            return
        self._running += 1
        self._tasks.create_task(self._copy(ticket, shadow), name="shadow")

    async def _copy(self, ticket: Ticket, shadow: ShadowSettings) -> None:
        copy = replace(ticket, variant=shadow.label, key=None, may_look_up=False, may_store=False)
        started, error = self._clock(), None
        tape: Tape | None = None
        try:
            copy = self._copied(copy, shadow, started)
            tape = Tape(copy, 0, self._clock)
            await self._relay.stream(copy, tape, _Nobody(), to_idlest=True)
        except SidecacheError as failure:
            error = failure
        finally:
            self._running -= 1
        first_at = tape.first_token_at if tape else None
        self._splits.ended(
            copy,
            error,
            from_engine=True,
            first_token_s=None if first_at is None else first_at - started,
            duration_s=self._clock() - started,
            output_tokens=tape.tokens if tape else 0,
        )

    def _copied(self, ticket: Ticket, shadow: ShadowSettings, now: float) -> Ticket:
        """The same request of the shadow's model.

        Raises:
            SidecacheError: nobody serves it, or it cannot take the request.
        """
        model = self._pool.model(shadow.model)
        request = pb.GenerateRequest()
        request.CopyFrom(ticket.request)
        request.model, request.adapter = model.name, shadow.adapter
        request.priority = min(request.priority, shadow.priority)
        salt, request.cache_salt = request.cache_salt, ""
        request.max_tokens = min(request.max_tokens, model.context_length)
        validate(request, model, self._limits)
        request.cache_salt = salt
        return replace(
            ticket,
            request=request,
            model=model,
            request_id=f"{ticket.request_id}-shadow",
            timeout_s=min(ticket.timeout_s, shadow.timeout_s),
            opened_at=now,
            attach_window_s=0.0,
        )
