"""Channels that notice a dead peer and record their calls."""

import grpc

from observability.interceptors import client_interceptors
from observability.settings import ChannelSettings, ClientTlsSettings
from observability.telemetry import Telemetry
from sidecache.errors import SetupError

DEFAULT_CHANNEL = ChannelSettings()


def open_channel(
    target: str, telemetry: Telemetry, settings: ChannelSettings = DEFAULT_CHANNEL
) -> grpc.aio.Channel:
    """A channel to `target`; it connects in the background.

    Args:
        target: host:port, dns:///name:port or unix:/path.

    Raises:
        SetupError: a certificate or key cannot be read.
    """
    options = _options(settings)
    interceptors = client_interceptors(telemetry, target)
    if settings.tls is None:
        return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
    if settings.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    credentials = _credentials(settings.tls)
    return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)


def _options(settings: ChannelSettings) -> list[tuple[str, int | str]]:
    timeout_ms = round(settings.keepalive_timeout_s * 1000)
    return [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # Without it a stopped peer is noticed only after 60 s.
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.min_reconnect_backoff_ms", round(settings.connect_timeout_s * 1000)),
        (
            "grpc.initial_reconnect_backoff_ms",
            min(100, round(settings.max_reconnect_backoff_s * 1000)),
        ),
        ("grpc.max_reconnect_backoff_ms", round(settings.max_reconnect_backoff_s * 1000)),
        # Bound what a stalled reader makes both sides buffer.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
        # Retry and hedging are decided by the router, never behind its back.
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
