"""Addresses as Sidecache writes them: ``host:port`` and ``unix:/path``, as sockets."""

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, or is to be dialled.

    Exactly one of ``path`` (a Unix socket) and ``host`` with ``port`` is set.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, address: str) -> "Endpoint":
        """Read an address.

        Raises:
            ValueError: it is neither ``host:port`` nor ``unix:/path``.
        """
        if address.startswith("unix:"):
            # gRPC also writes unix:///path.
            path = "/" + address.removeprefix("unix:").lstrip("/")
            if path == "/":
                raise ValueError(f"address was {address!r}, but needs a path: unix:/path")
            return cls(path=path)
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
            raise ValueError(f"address was {address!r}, but must be host:port or unix:/path")
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def sockaddr(self) -> str | tuple[str, int]:
        return self.path or (self.host, self.port)

    def new_socket(self) -> socket.socket:
        """A non-blocking socket of the right family."""
        if self.path:
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if not self.path:
            # A burst must not wait 40 ms for a delayed acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


class Doorstep:
    """A listening address that can stop listening and come back at the same place.

    For TCP a second socket stays bound, but never listens, so that no other
    process is given the port meanwhile; Linux then refuses a connection as if
    nobody were there. A Unix socket's path is removed and made again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._holder: socket.socket | None = None
        if not endpoint.path:
            self._holder = _bound(endpoint)
            endpoint = Endpoint(endpoint.host, self._holder.getsockname()[1])
        self.endpoint = endpoint
        self.listener: socket.socket | None = None

    def open(self) -> socket.socket:
        """Listen (again)."""
        if self.listener is None:
            self.listener = _bound(self.endpoint)
            self.listener.listen(BACKLOG)
        return self.listener

    def close(self) -> None:
        """Refuse new connections from now on."""
        if self.listener is None:
            return
        self.listener.close()
        self.listener = None
        if self.endpoint.path:
            with contextlib.suppress(FileNotFoundError):
                Path(self.endpoint.path).unlink()

    def leave(self) -> None:
        """Give the address back."""
        self.close()
        if self._holder is not None:
            self._holder.close()


def _bound(endpoint: Endpoint) -> socket.socket:
    sock = endpoint.new_socket()
    try:
        if not endpoint.path:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(endpoint.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock
