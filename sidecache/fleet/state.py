"""The private folder of one running fleet: keys, socket, logs, and who runs it.

::

    $SIDECACHE_HOME/run/PORT/    mode 0700
        demo.key                 the demo key, mode 0600
        keys.toml                its hash, as the router reads it
        cache.sock               where the cache sidecar listens
        cache/                   the answers it keeps
        router.log …             one log a service
        up.json                  the running `sidecache up`: pid, address, ports
        lock                     held while it runs
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecache.durable_file import locked, write_atomically
from sidecache.errors import SetupError
from sidecache.keys_file import create_key
from sidecache.weights import sidecache_home

DEFAULT_PORT = 7070
# sockaddr_un.sun_path, with its final zero; gRPC refuses longer ones.
_MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Running:
    """A `sidecache up` that runs now.

    Attributes:
        pid: of the `sidecache up` itself.
        address: of its router.
        ports: every TCP port it holds.
    """

    pid: int
    address: str
    ports: list[int]


class FleetState:
    """The folder of the fleet whose router has this port.

    Args:
        port: the router's.
        home: instead of the user's own Sidecache folder.
    """

    def __init__(self, port: int, home: Path | None = None) -> None:
        self.folder = (home or sidecache_home()) / "run" / str(port)
        self.keys_file = self.folder / "keys.toml"
        self.demo_key_file = self.folder / "demo.key"
        self._note = self.folder / "up.json"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, private, and hold it for this process alone.

        Raises:
            SetupError: another `sidecache up` holds it, or it cannot be made.
        """
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.folder.chmod(0o700)
                held.enter_context(locked(self.folder / "lock", wait_s=0))
            except TimeoutError as error:
                raise SetupError(
                    f"another `sidecache up` uses {self.folder}; stop it, or choose another --port"
                ) from error
            except OSError as error:
                raise SetupError(
                    f"cannot use {self.folder}: {error.strerror}; set SIDECACHE_HOME to another "
                    "folder"
                ) from error
            held.callback(self._note.unlink, missing_ok=True)
            yield

    def note_running(self, address: str, ports: list[int]) -> None:
        """Leave word of who runs here, for `sidecache chat` and the next `sidecache up`."""
        note = {"pid": os.getpid(), "address": address, "ports": ports}
        write_atomically(self._note, json.dumps(note).encode())

    def demo_key(self) -> str:
        """The demo key, made the first time; it has admin rights on this fleet only."""
        if not (self.demo_key_file.exists() and self.keys_file.exists()):
            self.keys_file.unlink(missing_ok=True)
            key = create_key(self.keys_file, tenant="demo", admin=True)
            write_atomically(self.demo_key_file, key.encode() + b"\n")
        return self.demo_key_file.read_text().strip()

    @contextlib.contextmanager
    def socket_folder(self) -> Iterator[Path]:
        """Where the sidecar's socket lies: here, or in a short private folder if need be."""
        if len(os.fsencode(self.folder / "cache.sock")) <= _MAX_SOCKET_PATH:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="sidecache-") as short:
            yield Path(short)

    def log_file(self, service: str) -> Path:
        """The log of one service."""
        return self.folder / f"{service}.log"


def read_demo_key(port: int = DEFAULT_PORT, home: Path | None = None) -> str | None:
    """The demo key of the fleet on this port, if one was ever started here."""
    with contextlib.suppress(OSError):
        return FleetState(port, home).demo_key_file.read_text().strip()
    return None


def find_running(port: int, home: Path | None = None) -> Running | None:
    """The fleet of this user that holds a port now, as its router's or a worker's."""
    for note in sorted(((home or sidecache_home()) / "run").glob("*/up.json")):
        # A note is left behind by a SIGKILL; only a held lock proves a living fleet.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(note.read_text())
            if port in found["ports"] and _is_held(note.with_name("lock")):
                return Running(int(found["pid"]), str(found["address"]), list(found["ports"]))
    return None


def _is_held(lock: Path) -> bool:
    try:
        with locked(lock, wait_s=0):
            return False
    except TimeoutError:
        return True
