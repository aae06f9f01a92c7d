"""How a client reaches a server: plaintext or TLS, and the channel's options."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from sidecache.errors import SetupError

# Mirrors what our servers allow: a peer that hangs is noticed within seconds,
# and an ordinary server does not see "too many pings" while a stream is idle.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without this one a hung peer is noticed after a minute only.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A server that restarts is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A reader that stalls holds back the server after 64 KiB, not after megabytes.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS for a client.

    Attributes:
        ca_file: the authorities to trust, PEM. None: gRPC's own list.
        cert_file: this client's certificate, PEM, for mutual TLS.
        key_file: its private key, PEM.
        server_name: the name expected in the server's certificate, where it
            differs from the address.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None


def open_channel(
    address: str, *, tls: ClientTls | bool | None, has_api_key: bool, allow_plaintext: bool
) -> grpc.aio.Channel:
    """Open a channel as the rules for plaintext allow.

    Args:
        address: ``host:port``, ``[v6]:port`` or ``unix:/path``.
        tls: None chooses: plaintext to this machine, TLS to any other. True is
            TLS with gRPC's own authorities, False is plaintext.
        has_api_key: whether a key will travel over this channel.
        allow_plaintext: plaintext beyond this machine although a key travels.

    Raises:
        SetupError: an API key would travel in plaintext, or a TLS file is missing.
    """
    local = is_local(address)
    if tls is None:
        tls = not local and not allow_plaintext
    if tls is False:
        if has_api_key and not local and not allow_plaintext:
            raise SetupError(
                f"refused to send an API key in plaintext to {address}: use tls=True or a "
                "ClientTls, or allow_plaintext=True where the network itself is trusted"
            )
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    settings = ClientTls() if tls is True else tls
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if settings.server_name:
        options.append(("grpc.ssl_target_name_override", settings.server_name))
    return grpc.aio.secure_channel(address, _credentials(settings), options=options)


def is_local(address: str) -> bool:
    """Whether an address names this machine: a Unix socket or a loopback host."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = split_address(address)[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_address(address: str) -> tuple[str, int | None]:
    """Host and port of a target; a Unix socket's path has no port."""
    if address.startswith(("unix:", "unix-abstract:")):
        return address.partition(":")[2], None
    # dns://authority/host:port and ipv4:host:port name their scheme first.
    rest = address.rpartition("/")[2].removeprefix("dns:")
    rest = rest.removeprefix("ipv4:").removeprefix("ipv6:")
    host, _, port = rest.rpartition(":")
    if not port.isascii() or not port.isdecimal():
        host, port = rest, ""
    return host.strip("[]"), int(port) if port else None


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file),
        private_key=_read(tls.key_file),
        certificate_chain=_read(tls.cert_file),
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read the TLS file {path}: {error.strerror}") from error
