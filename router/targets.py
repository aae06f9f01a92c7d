"""Where workers are: an address, or a name that stands for several."""

import asyncio
import socket

from sidecache.errors import SetupError

DNS_PREFIX = "dns:"


def check_target(target: str) -> str:
    """Return the target if it can be one.

    Raises:
        SetupError: it is neither host:port, unix:/path nor dns:host:port.
    """
    if target.startswith("unix:") and len(target) > len("unix:"):
        return target
    host, _, port = target.removeprefix(DNS_PREFIX).lstrip("/").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise SetupError(f"worker target {target!r}: may be host:port, unix:/path or dns:host:port")
    return target


async def resolve(target: str) -> frozenset[str]:
    """The addresses a target stands for now.

    Raises:
        OSError: the name cannot be resolved at this moment.
    """
    if not target.startswith(DNS_PREFIX):
        return frozenset((target,))
    host, _, port = target.removeprefix(DNS_PREFIX).lstrip("/").rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM
    )
    return frozenset(
        f"[{address[0]!s}]:{port}" if family == socket.AF_INET6 else f"{address[0]!s}:{port}"
        for family, _, _, _, address in found
    )
