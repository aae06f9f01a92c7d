"""Servers with every standard part: health, reflection, TLS, limits, drain."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from observability.health import Health
from observability.interceptors import ServerEdge
from observability.listening import bind, is_local
from observability.settings import ServerSettings
from observability.telemetry import Telemetry

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class RunningServer:
    """A server that answers.

    Attributes:
        address: what a client on this host can dial, with the real port.
    """

    def __init__(
        self,
        address: str,
        server: grpc.aio.Server,
        health: Health,
        end_streams: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self._server = server
        self._health = health
        self._end_streams = end_streams

    def set_serving(self, serving: bool) -> None:
        """Tell health checks whether to send requests here."""
        self._health.set_serving(serving)

    async def drain(self, grace_s: float) -> None:
        """Report NOT_SERVING, admit nothing, let running calls finish.

        Args:
            grace_s: after this many seconds what still runs is cancelled.
        """
        self._health.close()
        if self._end_streams is not None:
            self._end_streams()
        await self._server.stop(grace_s)


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

    Raises:
        SetupError: the address cannot be listened on, or a TLS file cannot be read.
    """
    health = Health(services)
    server = grpc.aio.server(
        interceptors=(ServerEdge(telemetry, services), *interceptors),
        options=(*_options(settings), *options),
    )
    register(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection or (settings.reflection is None and is_local(settings.listen)):
        _add_reflection(server, services)
    address = bind(server, settings)
    running = RunningServer(address, server, health, end_streams)
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
