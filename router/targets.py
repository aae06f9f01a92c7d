"""Where workers are: an address, a name that stands for several, or a file that lists them."""

import asyncio
import socket
import tomllib
from pathlib import Path

from sidecache.errors import SetupError

DNS_PREFIX = "dns:"
FILE_PREFIX = "file:"
# A longer list of workers is a mistake, not a fleet.
_MAX_FILE_BYTES = 1 << 20


def check_target(target: str) -> str:
    """Return the target if it can be one.

    Raises:
        SetupError: it is neither host:port, unix:/path, dns:host:port nor file:/path, or it
            is a file that cannot be used.
    """
    if target.startswith(FILE_PREFIX):
        try:
            _read_list(target)
        except OSError as error:
            raise SetupError(f"worker target {target!r}: {error.strerror}") from error
        return target
    return _check_address(target, may_be_name=True)


def is_fixed(target: str) -> bool:
    """Whether the target stands for the same address for ever."""
    return not target.startswith((DNS_PREFIX, FILE_PREFIX))


async def resolve(target: str) -> frozenset[str]:
    """The addresses a target stands for now.

    Raises:
        OSError: the name cannot be resolved, or the file cannot be read, at this moment.
        SetupError: the file lists what cannot be a worker.
    """
    if target.startswith(FILE_PREFIX):
        return await asyncio.to_thread(_read_list, target)
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


def _check_address(target: str, *, may_be_name: bool) -> str:
    if target.startswith("unix:") and len(target) > len("unix:"):
        return target
    address = target.removeprefix(DNS_PREFIX) if may_be_name else target
    host, _, port = address.lstrip("/").rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if (
        not host
        or not _is_name(host)
        or (":" in host and not is_ipv6)
        or not port.isdigit()
        or not 0 < int(port) < 1 << 16
    ):
        forms = ", dns:host:port or file:/path" if may_be_name else ""
        raise SetupError(f"worker target {target!r}: may be host:port, unix:/path{forms}")
    return target


def _is_name(host: str) -> bool:
    """Whether a resolver takes it: one with an empty or endless label is no name at all."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _read_list(target: str) -> frozenset[str]:
    """The addresses in a file: `workers = [...]` in a .toml, else one a line."""
    path = Path(target.removeprefix(FILE_PREFIX))
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise SetupError(f"worker list {path}: over {_MAX_FILE_BYTES} bytes")
    if not content:
        # A file that is being replaced in place is empty for a moment.
        raise SetupError(f"worker list {path}: empty; for no workers write a comment that says so")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise SetupError(f"worker list {path}: not UTF-8 ({error.reason})") from error
    addresses = _of_toml(path, text) if path.suffix == ".toml" else _of_lines(path, text)
    try:
        return frozenset(_check_address(one, may_be_name=False) for one in addresses)
    except SetupError as error:
        raise SetupError(f"worker list {path}: {error.text}") from error


def _of_lines(path: Path, text: str) -> list[str]:
    """One address a line; blank lines and what follows a # left out."""
    # Every line ends with a line feed; a last one without is a file still being written.
    if not text.endswith("\n"):
        raise SetupError(f"worker list {path}: the last line is not ended; is it still written?")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _of_toml(path: Path, text: str) -> list[str]:
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SetupError(f"worker list {path}: not TOML ({error})") from error
    workers = table.pop("workers", None)
    if table or not isinstance(workers, list) or not all(isinstance(w, str) for w in workers):
        raise SetupError(f'worker list {path}: must be workers = ["host:port", ...], nothing else')
    return workers
