"""Servers with every standard part: health, reflection, TLS, limits, drain."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from observability.health import Health
from observability.interceptors import ServerEdge
from observability.listening import bind, is_local
from observability.settings import ServerSettings
from observability.telemetry import Telemetry
from sidecache.errors import Draining, SidecacheError

# For the refusals on their way when the last call has ended.
_LAST_WORDS_S = 1.0
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class RunningServer:
    """A server that answers.

    Attributes:
        address: what a client on this host can dial, with the real port.
        reconfigure: takes new settings while it runs; None: it cannot.
    """

    reconfigure: Callable[[Any], None] | None = None

    def __init__(
        self,
        address: str,
        server: grpc.aio.Server,
        health: Health,
        edge: ServerEdge,
        end_streams: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self._server = server
        self._health = health
        self._edge = edge
        self._end_streams = end_streams

    def set_serving(self, serving: bool) -> None:
        """Tell health checks whether to send requests here."""
        self._health.set_serving(serving)

    async def drain(self, grace_s: float, linger_s: float = 0.0) -> None:
        """Report NOT_SERVING, refuse new calls, let running ones finish.

        Args:
            grace_s: after this many seconds what still runs is ended, with a status that
                says why.
            linger_s: new calls are refused one by one for at least this long, so that
                callers who follow the health find another server before this one is gone.
        """
        self._health.close()
        if self._end_streams is not None:
            self._end_streams()
        idle = self._edge.refuse_new()
        until = asyncio.get_running_loop().time() + grace_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await asyncio.sleep(min(linger_s, grace_s))
                await idle.wait()
        # With no grace at all nobody is told: who closes like that wants it closed.
        if grace_s and not idle.is_set():
            self._edge.end_running()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await idle.wait()
        await self._server.stop(_LAST_WORDS_S if grace_s else 0.0)


@asynccontextmanager
async def open_server(
    settings: ServerSettings,
    telemetry: Telemetry,
    register: Callable[[grpc.aio.Server], None],
    *,
    services: Sequence[str],
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Sequence[tuple[str, int | str]] = (),
    end_streams: Callable[[], None] | None = None,
    cut_off: type[SidecacheError] = Draining,
) -> AsyncIterator[RunningServer]:
    """Serve until the block is left; SERVING from its first line.

    Args:
        settings: where, with which limits and certificates.
        telemetry: records each call.
        register: adds the servicers.
        services: their full names, for health and reflection.
        interceptors: run behind the server edge, in this order.
        options: channel arguments after (so over) our own.
        end_streams: ends the streams that have no end of their own; called when a
            drain begins, which would else wait for them.
        cut_off: what calls end with that a drain does not wait for any longer.

    Raises:
        SetupError: the address cannot be listened on, or a TLS file cannot be read.
    """
    health = Health(services)
    edge = ServerEdge(telemetry, services, cut_off)
    server = grpc.aio.server(
        interceptors=(edge, *interceptors),
        # Of an option that is given twice gRPC takes the first.
        options=tuple((dict(_options(settings)) | dict(options)).items()),
    )
    register(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection or (settings.reflection is None and is_local(settings.listen)):
        _add_reflection(server, services)
    address = bind(server, settings)
    running = RunningServer(address, server, health, edge, end_streams)
    try:
        await server.start()
        running.set_serving(True)
        yield running
    finally:
        await running.drain(0)


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    reflection.enable_server_reflection(
        (*services, HEALTH_SERVICE, reflection.SERVICE_NAME), server
    )


def _options(settings: ServerSettings) -> list[tuple[str, int | str]]:
    timeout_ms = round(settings.keepalive_timeout_s * 1000)
    return [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        # Linux would let a second process take half of our connections unseen.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # Clients ping eagerly to notice a dead peer; by default that ends in
        # "Too many pings".
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
        # A client that vanished without a word must free its engine slot.
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        # Bound what a stalled reader makes us buffer: about 1,400 small
        # messages instead of 57,000.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
    ]
