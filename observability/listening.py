"""Taking an address to listen on, or saying clearly why it cannot be had."""

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from observability.settings import ServerSettings, TlsSettings
from sidecache.errors import SetupError

_UNIX: Final = "unix:"
# sizeof(sockaddr_un.sun_path) on Linux, less the closing zero.
_MAX_UNIX_PATH: Final = 107
_MAX_PORT: Final = 65535


def is_local(listen: str) -> bool:
    """Whether only this host can reach the address."""
    if listen.startswith(_UNIX):
        return True
    host, _ = split_host_port(listen)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host_port(listen: str) -> tuple[str, int]:
    """The parts of host:port; an IPv6 host stands in brackets.

    Raises:
        SetupError: it is neither that nor a unix: path.
    """
    host, colon, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not bare or (":" in bare and not bracketed):
        raise SetupError(f"listen address {listen!r}: give host:port, [v6]:port or unix:/path")
    if not (port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise SetupError(f"listen address {listen!r}: the port must be 0 to 65535")
    return bare, int(port)


def bind(server: grpc.aio.Server, settings: ServerSettings) -> str:
    """Make the server listen.

    Returns:
        A target that a client on this host can dial.

    Raises:
        SetupError: says which address, why not, and what to do.
    """
    credentials = _credentials(settings.tls) if settings.tls else None
    if settings.listen.startswith(_UNIX):
        return _bind_unix(server, settings.listen, credentials)
    if credentials is None and not settings.plaintext_beyond_loopback:
        _refuse_plaintext_beyond_loopback(settings.listen)
    return _bind_tcp(server, settings, credentials)


def _refuse_plaintext_beyond_loopback(listen: str) -> None:
    if not is_local(listen):
        raise SetupError(
            f"{listen} is reachable from other hosts and has no TLS: set tls, listen on "
            "127.0.0.1 or a unix: path, or allow it with plaintext_beyond_loopback"
        )


def _bind_tcp(
    server: grpc.aio.Server, settings: ServerSettings, credentials: grpc.ServerCredentials | None
) -> str:
    host, port = split_host_port(settings.listen)
    _probe_tcp(host, port, reuse_port=settings.reuse_port)
    bound = _add_port(server, settings.listen, credentials)
    if not bound:
        raise SetupError(f"cannot listen on {settings.listen}: choose another address")
    dialled = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    return f"[{dialled}]:{bound}" if ":" in dialled else f"{dialled}:{bound}"


def _probe_tcp(host: str, port: int, *, reuse_port: bool) -> None:
    """Bind once by ourselves: gRPC keeps the reason to itself and logs instead."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
    except OSError as error:
        raise SetupError(_why_not(host, port, error)) from error


def _why_not(host: str, port: int, error: OSError) -> str:
    match error:
        case OSError(errno=errno.EADDRINUSE):
            return f"port {port} on {host} is in use: stop what listens there or choose another"
        case OSError(errno=errno.EACCES):
            return f"port {port} on {host} needs privileges: choose one above 1023"
        case OSError(errno=errno.EADDRNOTAVAIL) | socket.gaierror():
            return f"{host} is no address of this host: listen on one that is"
        case _:
            return f"cannot listen on {host}:{port}: {error.strerror}"


def _bind_unix(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None
) -> str:
    path = Path(listen.removeprefix(_UNIX).removeprefix("//"))
    _clear_stale_socket(path)
    with _private_files():
        _add_port(server, f"{_UNIX}{path}", credentials)
    return f"{_UNIX}{path}"


def fits_unix_path(path: str) -> bool:
    """Whether a Unix socket may have this path."""
    return Path(path).is_absolute() and len(os.fsencode(path)) <= _MAX_UNIX_PATH


@contextmanager
def bound_unix(path: str) -> Iterator[socket.socket]:
    """A private Unix socket with this path for the length of the block; not listening yet.

    Raises:
        SetupError: says why not, and what to do.
    """
    _clear_stale_socket(Path(path))
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _private_files():
        bound.bind(path)
    try:
        yield bound
    finally:
        bound.close()
        Path(path).unlink(missing_ok=True)


def _clear_stale_socket(path: Path) -> None:
    """Refuse what must not be replaced: gRPC unlinks even a live socket."""
    if not fits_unix_path(str(path)):
        raise SetupError(
            f"socket path {path}: give an absolute path of at most {_MAX_UNIX_PATH} bytes"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SetupError(f"socket path {path}: {path.parent} is no directory we can write to")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SetupError(f"socket path {path} is a file of another kind: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise SetupError(f"socket path {path}: {error.strerror}") from error
    raise SetupError(f"socket {path} is in use: stop what listens there or choose another path")


@contextmanager
def _private_files() -> Iterator[None]:
    """Create files as 0600, so that a socket is private from its first moment.

    The umask is the process's own; other threads that create files meanwhile get
    them private too, which harms nobody.
    """
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _add_port(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        hint = "choose another address"
        if credentials is not None:
            hint += ", or give tls a PEM certificate and the key that belongs to it"
        raise SetupError(f"cannot listen on {address}: {hint}") from error


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    try:
        pair = (tls.key_file.read_bytes(), tls.cert_file.read_bytes())
        authorities = tls.client_ca_file.read_bytes() if tls.client_ca_file else None
    except OSError as error:
        raise SetupError(
            f"TLS file {error.filename}: {error.strerror}; name a readable PEM file"
        ) from error
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=authorities is not None
    )
