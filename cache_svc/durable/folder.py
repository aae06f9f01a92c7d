"""The private folder of one durable store: who may read it, and that one process does."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sidecache.durable_file import locked, sync_folder
from sidecache.errors import SetupError

DATABASE = "answers.sqlite3"
_OTHERS = 0o077


@contextlib.contextmanager
def claimed_folder(folder: Path) -> Iterator[Path]:
    """Make the folder (0700), hold it for this process, yield the database's path (0600).

    The mode of a folder that exists is not changed: it may be a wrong path.

    Raises:
        SetupError: it is open to other users, cannot be written, or another
            process holds it.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            mode = folder.stat().st_mode & 0o777
            if mode & _OTHERS:
                raise SetupError(
                    f"store.path {folder} has mode {mode:04o}; answers are private: "
                    f"chmod 0700 it, or name another folder"
                )
            held.enter_context(locked(folder / "lock", wait_s=0))
            (folder / "lock").chmod(0o600)
            database = folder / DATABASE
            make_private(database)
        except TimeoutError as error:
            raise SetupError(
                f"another sidecar uses store.path {folder}; stop it, or name another folder"
            ) from error
        except OSError as error:
            raise SetupError(f"cannot use store.path {folder}: {error.strerror}") from error
        yield database


def make_private(database: Path) -> None:
    """Make the file if need be, with mode 0600; SQLite gives its log the same mode.

    Raises:
        OSError: it cannot be opened to read and write, or is a link.
    """
    descriptor = os.open(database, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def set_aside(database: Path) -> Path:
    """Rename a damaged database; returns where it lies. An older one is replaced."""
    aside = database.with_name(f"{DATABASE}.corrupt")
    for suffix in ("-wal", "-shm", ""):
        source = database.with_name(database.name + suffix)
        target = aside.with_name(aside.name + suffix)
        target.unlink(missing_ok=True)
        if source.exists():
            source.replace(target)
    sync_folder(database.parent)
    return aside
