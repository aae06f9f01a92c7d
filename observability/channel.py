"""Channels that notice a dead peer and record their calls.

grpc.aio runs every intercepted call in a task of its own behind a second call
object. That costs more than all we record, and delays a cancel. So the channel
itself observes: its stubs start gRPC's plain call with one more metadata entry
and a callback for its end.
"""

from typing import Any, Final, Self

import grpc

from observability.interceptors.calls import Method
from observability.interceptors.client import ClientCall, ClientEdge
from observability.settings import ChannelSettings, ClientTlsSettings
from observability.telemetry import Telemetry
from sidecache.errors import SetupError

DEFAULT_CHANNEL: Final = ChannelSettings()


def open_channel(
    target: str, telemetry: Telemetry, settings: ChannelSettings = DEFAULT_CHANNEL
) -> grpc.aio.Channel:
    """A channel to `target`; it connects in the background.

    Args:
        target: host:port, dns:///name:port or unix:/path.
        telemetry: records each call.
        settings: TLS, limits, and how a dead peer is noticed.

    Raises:
        SetupError: a certificate or key cannot be read.
    """
    edge = ClientEdge(telemetry, target)
    options = _options(settings)
    if settings.tls is None:
        return ObservedChannel(grpc.aio.insecure_channel(target, options), edge)
    if settings.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    credentials = _credentials(settings.tls)
    return ObservedChannel(grpc.aio.secure_channel(target, credentials, options), edge)


class _Observed:
    """A method of a stub: gRPC's own plus the record of each call."""

    def __init__(self, inner: Any, edge: ClientEdge, method: Method) -> None:
        self._inner = inner
        self._edge = edge
        self._method = method

    def __call__(self, request: Any, *, metadata: Any = None, **options: Any) -> Any:
        observed = ClientCall(self._edge, self._method)
        headers = (*metadata, *observed.headers) if metadata else observed.headers
        try:
            call = self._inner(request, metadata=headers, **options)
        except BaseException:
            observed.finish(grpc.StatusCode.CANCELLED)
            raise
        observed.follow(call)
        return call


class _ObservedUnary(_Observed, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """A unary method."""


class _ObservedStream(_Observed, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    """A server-streaming method."""


class ObservedChannel(grpc.aio.Channel):
    """A channel whose unary and server-streaming calls are recorded.

    Calls that stream requests pass as they are; the contract has none.
    """

    def __init__(self, inner: grpc.aio.Channel, edge: ClientEdge) -> None:
        self._inner = inner
        self._edge = edge

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.unary_unary(method, *args, **kwargs)
        return _ObservedUnary(inner, self._edge, self._edge.method(method))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.unary_stream(method, *args, **kwargs)
        return _ObservedStream(inner, self._edge, self._edge.method(method))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner.stream_stream(*args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()


def _options(settings: ChannelSettings) -> list[tuple[str, int | str]]:
    timeout_ms = round(settings.keepalive_timeout_s * 1000)
    backoff_ms = round(settings.max_reconnect_backoff_s * 1000)
    return [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # Without it a stopped peer is noticed only after 60 s.
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        # In gRPC this one is also the longest an attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", round(settings.connect_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", min(100, backoff_ms)),
        ("grpc.max_reconnect_backoff_ms", backoff_ms),
        # Bound what a stalled reader makes both sides buffer.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
        # A retry behind the router's back would break its count of attempts.
        ("grpc.enable_retries", 0),
        # Channels to one target must not share a connection and its fate.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _credentials(tls: ClientTlsSettings) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=tls.ca_file.read_bytes() if tls.ca_file else None,
            private_key=tls.key_file.read_bytes() if tls.key_file else None,
            certificate_chain=tls.cert_file.read_bytes() if tls.cert_file else None,
        )
    except OSError as error:
        raise SetupError(
            f"TLS file {error.filename}: {error.strerror}; name a readable PEM file"
        ) from error
