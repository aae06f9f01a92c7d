"""Snapshots of large indexes: quick to load, never trusted, always rebuildable.

The truth is the store and the vectors in it. A snapshot spares the minute that
learning the lists of a million vectors takes, so it is used only where everything
about it is as expected; anything else is told in one log line and left alone, and
the index is built from the store's vectors. What changed after the snapshot was
taken is made up for by :func:`reconcile`.

A folder holds ``index.faiss``, in FAISS's own format, and ``manifest.json``, which
is written last: a snapshot without its manifest never existed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import faiss

from cache_svc.ivf_index import HASHTABLE, IvfIndex
from cache_svc.vector_index import CorruptIndex, VectorRefused, check_vector
from sidecache.durable_file import sync_folder, write_atomically

_log = logging.getLogger(__name__)

FORMAT = 1
_INDEX_FILE = "index.faiss"
_MANIFEST_FILE = "manifest.json"
_MANIFEST_BYTES = 4096
_READ_BYTES = 1 << 20
# Vectors of a loaded index that are looked at and searched for.
_PROBES = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """What vectors a snapshot holds. Those of two origins never meet.

    Attributes:
        fingerprint: of the embedder.
        generation: counts the changes of embedder, and whatever else makes all
            vectors anew.
        scope: names tenant and scope, so that a moved file is noticed.
        dimension: length of every vector.
    """

    fingerprint: str
    generation: int
    scope: str
    dimension: int


class SnapshotRefused(Exception):
    """The snapshot is absent, damaged or foreign; the text says which."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What is written beside the index."""

    format: int
    fingerprint: str
    generation: int
    scope: str
    dimension: int
    count: int
    lists_searched: int
    bytes: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            with path.open("rb") as file:
                fields = json.loads(file.read(_MANIFEST_BYTES))
            manifest = cls(**fields)
        except FileNotFoundError:
            raise SnapshotRefused("there is none") from None
        except (OSError, ValueError, TypeError) as error:
            raise SnapshotRefused(f"its manifest cannot be read: {error}") from error
        kinds = {name: type(value) for name, value in asdict(manifest).items()}
        if kinds != dict(cls.__annotations__):
            raise SnapshotRefused("its manifest has fields of other types")
        return manifest


def save(index: IvfIndex, folder: Path, origin: Origin) -> None:
    """Replace the folder's snapshot by one of this index, durably.

    Changes wait while the index is written, and searches behind them: a second or so
    for a million vectors. Call it before the index is used (``on_built`` of
    GrowingIndex), or when the traffic has ended.

    Args:
        index: what to save.
        folder: of this scope alone; made, for its owner only, when it is missing.
        origin: what the vectors are.

    Raises:
        OSError: the disk is full or not writable; no snapshot is left, and nothing
            half written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # From here on until the new manifest stands, there is no snapshot.
    (folder / _MANIFEST_FILE).unlink(missing_ok=True)
    path, part = folder / _INDEX_FILE, folder / f".{_INDEX_FILE}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file, index.unchanging() as ivf:
            os.fchmod(file.fileno(), 0o600)
            count = len(index)
            digest = _Hashed(file.write)
            _write(ivf, digest)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    manifest = _Manifest(
        format=FORMAT,
        **asdict(origin),
        count=count,
        lists_searched=index.lists_searched,
        bytes=digest.size,
        sha256=digest.hexdigest(),
    )
    write_atomically(folder / _MANIFEST_FILE, json.dumps(asdict(manifest)).encode())
    sync_folder(folder)


class _Hashed:
    """Passes bytes on, and knows their number and hash."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self.size = 0

    def __call__(self, part: bytes) -> int:
        self._write(part)
        self._digest.update(part)
        self.size += len(part)
        return len(part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _write(ivf: Any, sink: _Hashed) -> None:
    """Serialize, passing the sink's own error on where FAISS would tell only of its own."""
    failure: list[OSError] = []

    def write(part: bytes) -> int:
        try:
            return sink(part)
        except OSError as error:
            failure.append(error)
            return 0

    try:
        writer = faiss.PyCallbackIOWriter(write, _READ_BYTES)  # type: ignore[attr-defined]
        faiss.write_index(ivf, writer)
    except RuntimeError:
        if failure:
            raise failure[0] from None
        raise


def load(folder: Path, expected: Origin) -> IvfIndex | None:
    """The snapshot in this folder, or None, and a log line, where it must not be used."""
    try:
        return _load(folder, expected)
    except SnapshotRefused as refusal:
        _log.info("the index snapshot in %s is not used: %s", folder, refusal)
        return None


def reconcile(index: IvfIndex, living: Collection[int]) -> list[int]:
    """Bring a loaded index in step with the store.

    Args:
        index: forgets what is not in ``living``.
        living: ids of the store's entries in this scope that have a vector.

    Returns:
        The ids whose vectors are the caller's to add, in the order of ``living``.
    """
    index.remove(index.ids().difference(living))
    return [entry_id for entry_id in living if entry_id not in index]


def _load(folder: Path, expected: Origin) -> IvfIndex:
    manifest = _Manifest.read(folder / _MANIFEST_FILE)
    if manifest.format != FORMAT:
        raise SnapshotRefused(f"it has format {manifest.format}, not {FORMAT}")
    for name, wanted in asdict(expected).items():
        found = getattr(manifest, name)
        if found != wanted:
            raise SnapshotRefused(f"its {name} is {found!r}, not {wanted!r}")
    path = folder / _INDEX_FILE
    _check_content(path, manifest)
    # No single array of an honest file is larger than the file.
    faiss.set_deserialization_vector_byte_limit(manifest.bytes)
    try:
        ivf = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        raise SnapshotRefused(f"FAISS cannot read it: {error}") from error
    return _checked(ivf, manifest)


def _check_content(path: Path, manifest: _Manifest) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != manifest.bytes:
                raise SnapshotRefused("its file has another size than its manifest says")
            while part := file.read(_READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise SnapshotRefused(f"its file cannot be read: {error}") from error
    if digest.hexdigest() != manifest.sha256:
        raise SnapshotRefused("its file has another checksum than its manifest says")


def _checked(ivf: Any, manifest: _Manifest) -> IvfIndex:
    """The index, if it is of the kind, size and soundness that the manifest states."""
    if not isinstance(ivf, faiss.IndexIVFScalarQuantizer) or ivf.sq.qtype != _HALF:
        raise SnapshotRefused(f"it holds a {type(ivf).__name__}")
    if (ivf.d, ivf.ntotal) != (manifest.dimension, manifest.count):
        raise SnapshotRefused(f"it holds {ivf.ntotal} vectors of {ivf.d} dimensions")
    if not 1 <= manifest.lists_searched <= ivf.nlist:
        raise SnapshotRefused(f"{manifest.lists_searched} of {ivf.nlist} lists are to be searched")
    if ivf.direct_map.type != HASHTABLE:
        ivf.set_direct_map_type(HASHTABLE)
    index = IvfIndex(ivf, _ids(ivf), manifest.lists_searched)
    if len(index) != manifest.count:
        raise SnapshotRefused("it holds an id twice")
    _probe(index)
    return index


_HALF = faiss.ScalarQuantizer.QT_fp16


def _ids(ivf: Any) -> set[int]:
    """The ids of all lists."""
    lists = ivf.invlists
    sized = [(number, lists.list_size(number)) for number in range(ivf.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(n), size) for n, size in sized if size]
    return {entry_id for part in parts for entry_id in part.tolist()}


def _probe(index: IvfIndex) -> None:
    """Search for some of its own vectors.

    Raises:
        SnapshotRefused: a vector or a score is none.
    """
    try:
        for batch, _ in zip(index.batches(), range(_PROBES), strict=False):
            check_vector(batch.vectors[0], index.dimension)
            index.search(batch.vectors[0], 1)
    except (VectorRefused, CorruptIndex) as error:
        raise SnapshotRefused(f"it is damaged: {error.text}") from error
