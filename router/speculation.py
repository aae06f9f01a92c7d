"""A worker starts before the cache has answered; whoever has the first token is heard.

The lookup then costs a miss no more than the head start it is given. The price: where the
answer turns out to be stored, a worker began for nothing (tail at scale: Dean and Barroso's
hedged requests, with the cache as the other server).
"""

import asyncio
import enum
from collections.abc import Callable, Coroutine
from typing import Any

from observability.metrics.router import SpeculationMetrics
from router.cache_client import Hit, Miss
from router.head_start import HeadStart
from router.relay import Reader
from sidecache.v1 import inference_pb2 as pb

OVERTAKEN = Miss("overtaken")
"""What a lookup is called whose answer nobody waited for."""

# Where the loop is late, the answer may have come and wait for its turn like the timer did.
_TURNS = 3


class _State(enum.Enum):
    HOLDING = enum.auto()
    OPEN = enum.auto()
    LOST = enum.auto()


class Gate:
    """A reader that gets nothing until the stream has a token to offer.

    Args:
        reader: behind the gate.
        opened: called when the first token opens it.
    """

    def __init__(self, reader: Reader, opened: Callable[[], object]) -> None:
        self._reader = reader
        self._opened = opened
        self._state = _State.HOLDING
        # `started`, `migrated` and the newest `progress` at most.
        self._held: list[pb.GenerateResponse] = []

    @property
    def is_open(self) -> bool:
        """Whether the stream is the answer."""
        return self._state is _State.OPEN

    def open(self) -> None:
        """Let the stream through: there is no other answer."""
        self._state = _State.OPEN

    def shut(self) -> None:
        """Drop the stream: another answer was faster."""
        self._state = _State.LOST

    async def write(self, message: pb.GenerateResponse) -> None:
        """Hold a message, pass it on with those before it, or drop it."""
        if self._state is _State.HOLDING:
            if not message.HasField("delta") and not message.HasField("finished"):
                self._hold(message)
                return
            self._state = _State.OPEN
            self._opened()
        if self._state is _State.LOST:
            return
        for held in self._held:
            await self._reader.write(held)
        self._held.clear()
        await self._reader.write(message)

    def _hold(self, message: pb.GenerateResponse) -> None:
        if self._held and _is_heartbeat(message) and _is_heartbeat(self._held[-1]):
            self._held.pop()
        self._held.append(message)


def _is_heartbeat(message: pb.GenerateResponse) -> bool:
    return message.HasField("progress") and len(message.ListFields()) == 1


class Speculation:
    """Races the lookup against a worker, for requests whose lookup takes too long.

    Args:
        head_start: how long the lookup runs alone.
        metrics: counts how the races end.
    """

    def __init__(self, head_start: HeadStart, metrics: SpeculationMetrics) -> None:
        self._head_start = head_start
        self._metrics = metrics
        # Lookups that nobody waits for any more; the cache's deadline ends them.
        self._late: set[asyncio.Task[Hit | Miss]] = set()

    async def race(
        self,
        lookup: Coroutine[Any, Any, Hit | Miss],
        generate: Callable[[Reader], Coroutine[Any, Any, None]],
        reader: Reader,
        tell: Callable[[Hit | Miss], None],
    ) -> Hit | Miss | None:
        """Look up, and generate as well if that takes long.

        Args:
            lookup: the cache's answer.
            generate: streams a worker's answer to the reader it is given.
            reader: gets it, if it is the faster one.
            tell: called once, with what became of the lookup.

        Returns:
            What the lookup found; None: a worker has answered, and the reader has it all.

        Raises:
            SidecacheError: the generation failed, and the cache had no answer.
        """
        looking = asyncio.create_task(self._timed(lookup), name="lookup")
        try:
            await asyncio.wait((looking,), timeout=self._head_start.seconds)
            for _ in range(_TURNS):
                if not looking.done():
                    await asyncio.sleep(0)
            if looking.done():
                outcome = looking.result()
                tell(outcome)
                return outcome
            return await self._both(looking, generate, reader, tell)
        finally:
            if looking not in self._late:
                looking.cancel()

    async def _timed(self, lookup: Coroutine[Any, Any, Hit | Miss]) -> Hit | Miss:
        clock = asyncio.get_running_loop().time
        began_at = clock()
        outcome = await lookup
        if isinstance(outcome, Hit) or outcome.is_told:
            self._head_start.looked_up(clock() - began_at, hit=isinstance(outcome, Hit))
        return outcome

    async def _both(
        self,
        looking: "asyncio.Task[Hit | Miss]",
        generate: Callable[[Reader], Coroutine[Any, Any, None]],
        reader: Reader,
        tell: Callable[[Hit | Miss], None],
    ) -> Hit | None:
        overtaken = asyncio.get_running_loop().create_future()
        gate = Gate(reader, lambda: overtaken.set_result(None))
        generating = asyncio.create_task(generate(gate), name="speculative generation")
        try:
            await asyncio.wait(
                (looking, generating, overtaken), return_when=asyncio.FIRST_COMPLETED
            )
            if not gate.is_open and (hit := await self._hit(looking)) is not None:
                gate.shut()
                self._metrics.ended("hit")
                tell(hit)
                return hit
            self._metrics.ended("worker" if gate.is_open else "miss")
            if not looking.done():
                self._let_go(looking)
            tell(looking.result() if looking.done() else OVERTAKEN)
            gate.open()
            await generating
            return None
        finally:
            await _end(generating)

    def _let_go(self, looking: "asyncio.Task[Hit | Miss]") -> None:
        """Nobody waits for it; but whether it would have hit is worth knowing."""
        self._late.add(looking)
        looking.add_done_callback(self._late.discard)

    @staticmethod
    async def _hit(looking: "asyncio.Task[Hit | Miss]") -> Hit | None:
        """Wait for the lookup, if a worker has failed before it: it may still help."""
        outcome = await looking
        return outcome if isinstance(outcome, Hit) else None


async def _end(generating: "asyncio.Task[None]") -> None:
    """Cancel what still runs; returns when its worker has been told."""
    if not generating.done():
        generating.cancel()
        await asyncio.wait((generating,))
    if not generating.cancelled():
        # Looked at, or asyncio reports it as lost; it was raised if it mattered.
        generating.exception()
