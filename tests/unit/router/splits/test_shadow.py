"""What a copy of a request is, how many there are, and what is counted of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from router.model import ServedModel
from router.relay import Reader, Relay
from router.settings import LimitSettings
from router.splits.results import Results
from router.splits.shadow import Shadows
from router.splits.splits import Splits
from router.tape import Tape
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import EngineFailed, SidecacheError
from sidecache.key import RequestKey
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import MODEL, Clock, chat, make_ticket, make_worker
from tests.unit.router.splits.test_splits import Router, settings

SHADOW = {"model": "new", "share": 0.25, "max_running": 2, "timeout_s": 5.0, "priority": -7}
KEPT_S = 9.0


class Recorded(Relay):
    """Takes the copies instead of workers; each runs until ``go_on`` is set."""

    def __init__(self) -> None:
        self.copies: list[Ticket] = []
        self.go_on = asyncio.Event()
        self.error: SidecacheError | None = None
        self.idlest: list[bool] = []

    async def stream(
        self, ticket: Ticket, tape: Tape, context: Reader, *_: Any, **options: Any
    ) -> Worker:
        self.copies.append(ticket)
        self.idlest.append(options["to_idlest"])
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        tape.take(pb.Delta(token_ids=[1, 2]))
        return make_worker("w1")


class Copying:
    """Shadows of a split whose variants and shadow are served by nobody but the recorder."""

    def __init__(self, draw: float = 0.0, **shadow: Any) -> None:
        router = Router(settings(shadow=SHADOW | shadow))
        self.model = replace(ServedModel.from_worker(MODEL), name="new", context_length=50)
        router.pool._roster.models["new"] = self.model
        self.splits: Splits = router.splits
        self.relay, self.draw = Recorded(), draw
        limits = LimitSettings()
        self.shadows = Shadows(
            self.splits, self.relay, router.pool, limits, Clock(), lambda: self.draw
        )

    @property
    def results(self) -> Results:
        (label,) = (name for name in self.splits.get("chat").results if name.startswith("shadow:"))
        return self.splits.get("chat").results[label]

    async def copy(self, request: pb.GenerateRequest | None = None, times: int = 1) -> None:
        ticket = replace(
            make_ticket(request or chat("hi")),
            split="chat",
            variant="old",
            key=RequestKey(b"s", b"e", ""),
            may_look_up=True,
            may_store=True,
            attach_window_s=KEPT_S,
        )
        for _ in range(times):
            self.shadows.copy_soon(ticket)
        await steps()


async def steps() -> None:
    """Let what is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def copying(**more: Any) -> AsyncIterator[Copying]:
    c = Copying(**more)
    running = asyncio.create_task(c.shadows.run())
    await steps()
    try:
        yield c
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_copy_is_the_same_question_to_another_model() -> None:
    """It may not hurry, take long, be stored, be found, or be kept for its caller."""
    async with copying() as c:
        asked = chat("hi", salt="salt")
        asked.priority, asked.max_tokens = 3, 40
        await c.copy(asked)
        (copy,) = c.relay.copies
        assert (copy.model, copy.request.model, copy.request.adapter) == (c.model, "new", "")
        assert copy.request.chat == asked.chat
        assert (copy.request.priority, copy.request.cache_salt) == (-7, "salt")
        assert (copy.timeout_s, copy.attach_window_s) == (5.0, 0.0)
        assert (copy.key, copy.may_look_up, copy.may_store) == (None, False, False)
        assert copy.request_id == "id-shadow"
        assert c.relay.idlest == [True]
        assert asked.priority == 3


async def test_what_is_less_urgent_already_stays_so() -> None:
    """The shadow's priority is the highest that a copy has."""
    async with copying() as c:
        asked = chat("hi")
        asked.priority, asked.max_tokens = -50, 400
        await c.copy(asked)
        (copy,) = c.relay.copies
        assert copy.request.priority == -50
        # Nor does a short-winded model refuse what the variant takes.
        assert copy.request.max_tokens == c.model.context_length


async def test_the_share_is_drawn() -> None:
    """Below it a request is copied; at it, not any more."""
    for draw, copies in ((0.2499, 1), (0.25, 0)):
        async with copying(draw=draw) as c:
            await c.copy()
            assert len(c.relay.copies) == copies


async def test_copies_are_bounded_and_make_room_when_they_end() -> None:
    """More are dropped, and counted; failed ones make room too."""
    async with copying() as c:
        await c.copy(times=5)
        assert (len(c.relay.copies), c.shadows.dropped) == (2, 3)
        c.relay.error = EngineFailed("the worker is lost")
        c.relay.go_on.set()
        await steps()
        await c.copy(times=2)
        assert (len(c.relay.copies), c.shadows.dropped) == (4, 3)


async def test_a_copys_end_is_the_shadows() -> None:
    """Good or bad; the variant that the caller got knows nothing of it."""
    async with copying() as c:
        c.relay.go_on.set()
        await c.copy()
        c.relay.error = EngineFailed("the worker is lost")
        await c.copy()
        assert (c.results.outcomes["ok"], c.results.outcomes["error"]) == (1, 1)
        assert c.splits.get("chat").results["old"].judged == 0


async def test_what_the_shadows_model_cannot_take_is_not_sent() -> None:
    """It is refused as any request is, and speaks against nobody."""
    async with copying(adapter="unknown") as c:
        await c.copy()
        assert not c.relay.copies
        assert c.results.outcomes["refused"] == 1
        assert c.results.judged == 0


async def test_nothing_is_copied_before_and_after_the_run() -> None:
    """And what runs at its end is cancelled."""
    c = Copying()
    await c.copy()
    async with copying() as other:
        await other.copy()
        c = other
    await c.copy()
    assert len(c.relay.copies) == 1
    assert c.results.judged == 0
