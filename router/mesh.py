"""Reading along at another router: one generation for one question, fleet-wide.

The sidecar says with a miss which router generates the answer already. The other one is
a hint: where it does not answer at once, or its stream breaks before the end, one of the
routers that followed takes its lease over and generates, from the first token that did not
come; the others follow him.
"""

import asyncio
import hmac
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from router.continuation import why_not_continued
from router.held_flights import HeldFlights
from router.peers import Peers
from router.relay import Reader
from router.settings import FlightSettings, LimitSettings
from router.splice import Splice
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import (
    BrokenInvariant,
    EngineFailed,
    SetupError,
    StreamInterrupted,
    Unauthenticated,
)
from sidecache.v1 import cache_pb2, inference_pb2_grpc
from sidecache.v1 import inference_pb2 as pb

_KEY: Final = "x-sidecache-mesh-key"
_TENANT: Final = "x-sidecache-mesh-tenant"
# The answer's exact key: a stream is found by what it answers, since its request may have
# joined another one's at that router.
_EXACT: Final = "x-sidecache-mesh-exact-bin"
_MIN_KEY_BYTES: Final = 32
# The other router has its lease before its stream; so often is looked again.
_AGAIN_S: Final = 0.02
# Routers followed one after the other for one request.
_MAX_FOLLOWED: Final = 4


class RouterCall(NamedTuple):
    """Another router's wish to read along.

    Attributes:
        tenant: for whom.
        exact: the key of the answer.
    """

    tenant: str
    exact: bytes


def read_key(path: Path) -> str:
    """The routers' common secret.

    Raises:
        SetupError: the file is missing, or holds too little to be one.
    """
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"flights.mesh_key_file {path}: {error}") from error
    if len(key) < _MIN_KEY_BYTES or not key.isprintable():
        raise SetupError(
            f"flights.mesh_key_file {path}: {len(key)} characters; needs {_MIN_KEY_BYTES} or"
            " more, printable ASCII"
        )
    return key


class Mesh:
    """The other routers.

    Args:
        key: their common secret.
        dial: a channel to an address.
        settings: how long another router is waited for.
        limits: how long a stream may be silent.
        held: the leases of this router.
    """

    def __init__(
        self,
        key: str,
        dial: Callable[[str], grpc.aio.Channel],
        settings: FlightSettings,
        limits: LimitSettings,
        held: HeldFlights,
    ) -> None:
        self._held = held
        self._key = key
        self._settings = settings
        self._limits = limits
        self._peers = Peers(dial)

    def reconfigure(self, limits: LimitSettings) -> None:
        """Take new limits; what is followed already goes on by the old ones."""
        self._limits = limits

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> RouterCall | None:
        """What another router wants; None: the caller is no router.

        Raises:
            Unauthenticated: it says it is one, and has not the key.
        """
        told = {name: value for name, value in metadata if name in (_KEY, _TENANT, _EXACT)}
        if _KEY not in told:
            return None
        key, tenant, exact = told[_KEY], told.get(_TENANT, ""), told.get(_EXACT, b"")
        given = key if isinstance(key, bytes) else key.encode()
        if not hmac.compare_digest(given, self._key.encode()) or not isinstance(tenant, str):
            raise Unauthenticated("unknown mesh key")
        return RouterCall(tenant, exact if isinstance(exact, bytes) else exact.encode())

    async def follow(
        self, lease: cache_pb2.FlightLease, ticket: Ticket, tape: Tape, reader: Reader
    ) -> bool:
        """Pass the other router's stream on; whether it came to its end.

        Where it did not, the tape says what the reader has, and the rest is to be
        generated here.

        Raises:
            StreamInterrupted: the rest could not be the same.
            SidecacheError: the reader's own stall.
        """
        followed: cache_pb2.FlightLease | None = lease
        for _ in range(_MAX_FOLLOWED):
            if followed is None:
                break
            async with self._peers.reach(followed.router) as channel:
                is_lost = await self._read_along(channel, followed, ticket, tape, reader)
            if tape.is_complete:
                return True
            why = why_not_continued(ticket) if tape.tokens else None
            if why is not None:
                raise StreamInterrupted(
                    f"the router that generated this was lost after {tape.tokens} tokens, and"
                    f" the rest cannot be continued exactly: {why.text}"
                )
            if not is_lost:
                break
            followed = await self._held.take_over(ticket, followed.router)
        return False

    async def _read_along(
        self,
        channel: grpc.aio.Channel,
        lease: cache_pb2.FlightLease,
        ticket: Ticket,
        tape: Tape,
        reader: Reader,
    ) -> bool:
        """Pass on what the tape does not have; whether the other router was lost before the end."""
        guard = StallGuard(
            self._limits.worker_silence_s, self._limits.reader_stall_s, self._limits.token_silence_s
        )
        call, splice = None, Splice(tape)
        tape.is_relayed = True
        try:
            with suppress(grpc.aio.AioRpcError, TimeoutError, EngineFailed):
                call, response = await self._attach(channel, lease, ticket)
                with guard:
                    while isinstance(response, pb.AttachResponse):
                        event = splice.rest(response.event)
                        if event is not None:
                            await self._pass_on(event, ticket, tape, reader, guard)
                        response = await call.read()
        except BrokenInvariant:
            # It generates; only this reader cannot go on with what it says.
            return False
        finally:
            tape.is_relayed = False
            if call is not None:
                call.cancel()
        return True

    async def _attach(
        self, channel: grpc.aio.Channel, lease: cache_pb2.FlightLease, ticket: Ticket
    ) -> tuple["grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.AttachResponse]", object]:
        """A call, and its first message: `started`."""
        request = pb.AttachRequest(request_id=lease.request_id)
        exact = ticket.key.exact if ticket.key is not None else b""
        metadata = ((_KEY, self._key), (_TENANT, ticket.tenant), (_EXACT, exact))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async with asyncio.timeout(self._settings.remote_wait_s):
            while True:
                call = stub.Attach(request, metadata=metadata, timeout=self._limits.max_request_s)
                try:
                    return call, await call.read()
                except BaseException as error:
                    call.cancel()
                    is_not_there = isinstance(error, grpc.aio.AioRpcError) and (
                        error.code() is grpc.StatusCode.NOT_FOUND
                    )
                    if not is_not_there:
                        raise
                await asyncio.sleep(_AGAIN_S)

    async def _pass_on(
        self,
        event: pb.GenerateResponse,
        ticket: Ticket,
        tape: Tape,
        reader: Reader,
        guard: StallGuard,
    ) -> None:
        if event.HasField("started"):
            event.started.request_id = ticket.request_id
            event.started.source = pb.SOURCE_COALESCED
            tape.started = True
        if event.HasField("migrated") and event.migrated.best_effort:
            raise BrokenInvariant("the rest of that stream may differ")
        if event.HasField("delta"):
            tape.take(event.delta)
            guard.has_tokens()
        if event.HasField("finished"):
            tape.finish(event.finished)
        guard.waits_for_reader()
        await reader.write(event)
        guard.waits_for_worker()

    async def aclose(self) -> None:
        """Close the connections to the others."""
        await self._peers.aclose()
