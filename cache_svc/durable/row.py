"""An entry as a row of the database, with a checksum that covers every field.

SQLite finds torn transactions by itself but not a bit that flipped on the disk:
a row whose checksum does not fit is never served.
"""

import json
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  # it is a class
from typing import Any, NamedTuple

from xxhash import xxh3_64_digest

from cache_svc.durable.timeline import Timeline
from cache_svc.entry import Entry, Key
from cache_svc.packed_vector import pack
from cache_svc.vector_index import Vector

_NO_TAGS = b"[]"
# Of an entry: its five numbers, its three times, and the lengths of what follows.
_ENTRY_HEAD = Struct("<5q3d8I")
_VECTOR_HEAD = Struct("<2qI")
# seq, id, embedder, dimension, tokens, created, expires, priority, tenant, namespace,
# model, text, tags, scope, exact, answer, checksum; texts as UTF-8 bytes.
EntryRow = tuple[Any, ...]
# seq, id, vector, checksum.
VectorRow = tuple[Any, ...]


class CorruptRow(ValueError):
    """The row is not what was written."""


class Restored(NamedTuple):
    """An entry out of its row, with the row's number and its priority when it came."""

    seq: int
    entry: Entry
    priority: float


def write_entry(
    seq: int, entry: Entry, embedder: int, timeline: Timeline, priority: float = 0.0
) -> EntryRow:
    """The row of an entry.

    Args:
        seq: number of the row.
        entry: of this process.
        embedder: whose vector it has, as the database counts embedders; 0: none.
        timeline: turns its times into wall-clock times.
        priority: in the eviction queue of its tenant.
    """
    key = entry.key
    fields = (
        seq,
        entry.id,
        embedder,
        entry.vector_dimension,
        entry.tokens,
        timeline.to_disk(entry.created_s),
        timeline.to_disk(entry.expires_s),
        priority,
        key.tenant.encode(),
        key.namespace.encode(),
        key.model.encode(),
        key.text.encode(),
        json.dumps(entry.tags).encode(),
        key.scope,
        key.exact,
        entry.answer,
    )
    return (*fields, _entry_checksum(fields))


def read_entry(row: EntryRow, embedder: int, timeline: Timeline) -> Restored:
    """The entry of a row, its age counted on.

    Args:
        row: as the database returns it.
        embedder: the one that is used now; a vector of another one is as good as none.
        timeline: turns its times into this process's.

    Raises:
        CorruptRow: the checksum does not fit.
    """
    fields = row[:-1]
    if _entry_checksum(fields) != row[-1]:
        raise CorruptRow("the checksum of an entry does not fit")
    seq, entry_id, embedded_by, dimension, tokens, created, expires, priority = fields[:8]
    tenant, namespace, model, text, tags, scope, exact, answer = fields[8:]
    key = Key(_name(tenant), _name(namespace), _name(model), _scope(scope), exact, text.decode())
    entry = Entry(
        entry_id,
        key,
        answer,
        () if tags == _NO_TAGS else tuple(json.loads(tags)),
        timeline.from_disk(created),
        timeline.from_disk(expires),
        dimension if embedder and embedded_by == embedder else 0,
        tokens,
    )
    return Restored(seq, entry, priority)


def write_vector(seq: int, entry_id: int, vector: Vector) -> VectorRow:
    """The row of a vector: packed to 16 bits a number."""
    packed = pack(vector).tobytes()
    return (seq, entry_id, packed, _vector_checksum(seq, entry_id, packed))


def read_vector(row: VectorRow) -> tuple[int, bytes]:
    """An entry's id and the bytes of its packed vector.

    Raises:
        CorruptRow: the checksum does not fit.
    """
    seq, entry_id, packed, checksum = row
    if _vector_checksum(seq, entry_id, packed) != checksum:
        raise CorruptRow("the checksum of a vector does not fit")
    return entry_id, packed


@lru_cache(maxsize=1024)
def _name(field: bytes) -> str:
    """A name that many entries share, as one object."""
    return field.decode()


@lru_cache(maxsize=4096)
def _scope(field: bytes) -> bytes:
    """A scope that many entries share, as one object."""
    return field


def _entry_checksum(fields: tuple[Any, ...]) -> bytes:
    """Over all fields and the lengths of those that have one; 64 bits find what rots.

    Raises:
        CorruptRow: a damaged field has another type.
    """
    try:
        head = _ENTRY_HEAD.pack(*fields[:8], *map(len, fields[8:]))
        return xxh3_64_digest(head + b"".join(fields[8:]))
    except (StructError, TypeError) as error:
        raise CorruptRow(f"a field has another type: {error}") from error


def _vector_checksum(seq: Any, entry_id: Any, packed: Any) -> bytes:
    try:
        return xxh3_64_digest(_VECTOR_HEAD.pack(seq, entry_id, len(packed)) + packed)
    except (StructError, TypeError) as error:
        raise CorruptRow(f"a field has another type: {error}") from error
