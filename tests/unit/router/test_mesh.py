"""Reading along at another router, which is a real server that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from router.held_flights import HeldFlights
from router.mesh import Mesh, RouterCall, read_key
from router.model import ServedModel
from router.settings import FlightSettings, LimitSettings, LookupSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import NotFound, SetupError, StreamInterrupted, Unauthenticated, Unavailable
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import MODEL, make_ticket
from tests.unit.router.flying import Gone, Listener
from tests.unit.sidecache.conftest import AttachContext, AttachScript, ScriptedService, serving
from tests.unit.sidecache.events import STARTED, delta, finished
from tests.unit.sidecache.test_resumption import going_on

KEY = "k" * 32
WHOLE = (STARTED, delta(0, 1, text="a"), delta(1, 2, 3, text="b"), finished(tokens=3))
LOST = Unavailable("connection reset")


@dataclass
class Follower:
    """One router's side: what it asks with, and what its reader and its tape have."""

    mesh: Mesh
    service: ScriptedService
    ticket: Ticket
    tape: Tape
    reader: Listener | Gone

    async def follow(self, script: AttachScript) -> bool:
        self.service.attach = script
        lease = cache_pb2.FlightLease(router=self.service.address, request_id="r1")
        async with asyncio.timeout(10):
            return await self.mesh.follow(lease, self.ticket, self.tape, self.reader)

    @property
    def ids(self) -> list[int]:
        assert isinstance(self.reader, Listener)
        return self.reader.ids


def make_mesh(**limits: float) -> Mesh:
    """Of a router that is alone: nobody has a lease but whom it follows."""
    settings = FlightSettings(remote_wait_s=0.3)
    held = HeldFlights(None, None, settings, LookupSettings(), lambda: 0.0)
    chosen = LimitSettings(**limits)  # type: ignore[arg-type]  # all are seconds
    return Mesh(KEY, grpc.aio.insecure_channel, settings, chosen, held)


@asynccontextmanager
async def follower(
    reader: Listener | Gone | None = None, *, exact: bool = True, **limits: float
) -> AsyncIterator[Follower]:
    """A router that follows another one, whose model continues exactly or not."""
    model = replace(ServedModel.from_worker(MODEL), exact_continuation=exact)
    ticket = replace(make_ticket(pb.GenerateRequest(n=1)), request_id="mine", model=model)
    tape, service, ours = Tape(ticket, 1 << 20, lambda: 0.0), ScriptedService(), make_mesh(**limits)
    async with serving(service) as service.address:
        yield Follower(ours, service, ticket, tape, reader or Listener())
        await ours.aclose()


async def test_a_stream_is_passed_on_as_ones_own() -> None:
    """Its tokens, under the caller's request id, said to be shared; asked for with the key."""
    async with follower() as f:
        assert await f.follow(going_on(*WHOLE))
        assert f.ids == [1, 2, 3]
        assert isinstance(f.reader, Listener)
        assert f.reader.started
        assert (f.reader.started.request_id, f.reader.started.source) == (
            "mine",
            pb.SOURCE_COALESCED,
        )
        assert (f.tape.is_complete, f.tape.tokens) == (True, 3)
        assert f.service.attached == [pb.AttachRequest(request_id="r1")]
        sent = f.service.metadata[0]
        assert (sent["x-sidecache-mesh-key"], sent["x-sidecache-mesh-tenant"]) == (KEY, "acme")


async def test_a_stream_that_is_about_to_begin_is_waited_for() -> None:
    """The other router has its lease before its stream."""
    scripts = [going_on(error=_not_there()), going_on(error=_not_there()), going_on(*WHOLE)]

    async def attach(context: AttachContext) -> None:
        await scripts.pop(0)(context)

    async with follower() as f:
        assert await f.follow(attach)
        assert f.ids == [1, 2, 3]


def _not_there() -> NotFound:
    return NotFound("no stream of yours has this id", kind="stream", name="r1")


async def _silent(_context: AttachContext) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "script",
    [going_on(error=_not_there()), _silent, going_on(error=LOST), going_on()],
    ids=["has no such stream", "is silent", "is lost", "ends at once"],
)
async def test_a_router_that_has_nothing_costs_a_moment(script: AttachScript) -> None:
    """Then this router generates; nothing was passed on, and no call stays open."""
    async with follower() as f:
        assert not await f.follow(script)
        assert (f.ids, f.tape.tokens) == ([], 0)
        # On a busy machine it may be given up before the call has come there.
        if f.service.attached:
            async with asyncio.timeout(5):
                await f.service.detached.wait()


@pytest.mark.parametrize("error", [LOST, None])
async def test_what_breaks_in_the_middle_is_gone_on_with_here(error: Unavailable | None) -> None:
    """With an error or without one; the tape says where."""
    async with follower() as f:
        assert not await f.follow(going_on(*WHOLE[:2], error=error))
        assert (f.ids, f.tape.tokens) == ([1], 1)


async def test_what_cannot_be_continued_exactly_is_told() -> None:
    """In words; before the first token there is nothing to continue."""
    async with follower(exact=False) as f:
        assert not await f.follow(going_on(STARTED, error=LOST))
        with pytest.raises(StreamInterrupted, match=r"after 1 tokens.*may differ between runs$"):
            await f.follow(going_on(*WHOLE[:2], error=LOST))


async def test_an_inexact_rest_is_not_passed_on() -> None:
    """The other's caller takes it; this one is given his own."""
    moved = pb.Migrated(from_worker="a", to_worker="b", offset=1, best_effort=True)
    events = (*WHOLE[:2], pb.GenerateResponse(migrated=moved), *WHOLE[2:])
    async with follower() as f:
        assert not await f.follow(going_on(*events))
        assert f.ids == [1]


async def test_a_stream_that_falls_silent_is_left() -> None:
    """After its first token it may be silent no longer than a worker may between two."""

    async def attach(context: AttachContext) -> None:
        await going_on(*WHOLE[:2])(context)
        await asyncio.Event().wait()

    async with follower(token_silence_s=0.2, worker_silence_s=60) as f:
        assert not await f.follow(attach)
        assert f.ids == [1]
        async with asyncio.timeout(5):
            await f.service.detached.wait()


async def test_a_reader_that_takes_nothing_is_told_so() -> None:
    """It is not the other router's silence."""
    async with follower(Listener(stalls_at=1), reader_stall_s=0.2, worker_silence_s=60) as f:
        with pytest.raises(StreamInterrupted, match="the client read nothing"):
            await f.follow(going_on(*WHOLE))


async def test_a_reader_that_is_gone_leaves_no_call_behind() -> None:
    """Its error is its own; the other router learns that nobody reads here."""

    async def attach(context: AttachContext) -> None:
        await going_on(*WHOLE[:2])(context)
        await asyncio.Event().wait()

    async with follower(Gone()) as f:
        # Kept, the error keeps the call too: nothing but the mesh itself ends it.
        with pytest.raises(grpc.aio.InternalError) as gone:
            await f.follow(attach)
        async with asyncio.timeout(5):
            await f.service.detached.wait()
        assert gone.value


@pytest.mark.parametrize("given", ["", "k", KEY[:-1], KEY + "k", b"\xff" * 32])
async def test_only_the_whole_key_opens(given: str | bytes) -> None:
    """No part of it, and nothing else; without any, the caller is no router."""
    ours, tenant = make_mesh(), ("x-sidecache-mesh-tenant", "acme")
    with pytest.raises(Unauthenticated):
        ours.caller([("x-sidecache-mesh-key", given), tenant])
    assert ours.caller([("x-sidecache-mesh-key", KEY), tenant]) == RouterCall("acme", b"")
    assert ours.caller([tenant]) is None


@pytest.mark.parametrize(
    ("content", "why"), [("k" * 31, "31 characters"), ("k" * 31 + "\u00fc", "ordinal|ascii")]
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: str, why: str) -> None:
    """By the file's name; space around it does not count."""
    file = tmp_path / "mesh.key"
    file.write_text(f" {content}\n")
    with pytest.raises(SetupError, match=why) as refused:
        read_key(file)
    assert str(file) in refused.value.text
    file.write_text(f"{KEY}\n")
    assert read_key(file) == KEY
    with pytest.raises(SetupError, match="No such file"):
        read_key(tmp_path / "none")
