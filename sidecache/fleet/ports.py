"""Which ports a fleet takes, and who holds one that is busy."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from sidecache.errors import InvalidRequest, SetupError

HOST = "127.0.0.1"
_STEP = 100
_HIGHEST = 65_535


def choose_ports(port: int, num_workers: int) -> list[int]:
    """The router's port, then the workers': consecutive ones.

    Args:
        port: the router's; 0 takes any free block.
        num_workers: how many ports follow.

    Raises:
        InvalidRequest: not a port, or too near the end.
        SetupError: no block is free.
    """
    if not 0 <= port <= _HIGHEST - num_workers:
        raise InvalidRequest(
            f"is {port}; with {num_workers} workers it may be 0 (any) to {_HIGHEST - num_workers}",
            field="port",
        )
    return free_block(num_workers + 1) if port == 0 else list(range(port, port + num_workers + 1))


def free_block(size: int, start: int | None = None) -> list[int]:
    """Consecutive free ports: from ``start`` upwards, or any.

    Raises:
        SetupError: there is none.
    """
    for first in _candidates(start):
        block = list(range(first, first + size))
        if block[-1] <= _HIGHEST and not busy_ports(block):
            return block
    raise SetupError(f"found no {size} consecutive free ports on {HOST}")


def busy_ports(ports: Sequence[int]) -> list[int]:
    """Those that something listens on."""
    return [port for port in ports if not _is_free(port)]


def holder(port: int) -> str:
    """Who listens on a port, as ``name (pid N)``; empty where that cannot be seen."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end, and other people's are closed to us.
        with contextlib.suppress(OSError):
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(entry.readlink()) in inodes:
                        return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _candidates(start: int | None) -> Iterator[int]:
    if start is not None:
        yield from range(start, _HIGHEST, _STEP)
        return
    for _ in range(_STEP):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        yield port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _listening_inodes(port: int) -> Iterator[str]:
    """The sockets listening on a port, as /proc/PID/fd names them."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                # local address, state (0A is LISTEN), inode: proc_pid_net(5)
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
