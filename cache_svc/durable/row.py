"""An entry as a row of the database, with a checksum that covers every field.

SQLite finds torn transactions by itself but not a bit that flipped on the disk:
a row whose checksum does not fit is never served.
"""

import json
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from cache_svc.durable.timeline import Timeline
from cache_svc.entry import Entry, Key
from cache_svc.vector_index import Vector

CHECKSUM_BYTES = 16
_NO_TAGS = b"[]"
# seq, id, embedder, dimension, tokens, created, expires, tenant, namespace, model,
# text, tags, scope, exact, answer, checksum; texts as UTF-8 bytes.
EntryRow = tuple[Any, ...]
# seq, id, vector, checksum.
VectorRow = tuple[Any, ...]


class CorruptRow(ValueError):
    """The row is not what was written."""


class Restored(NamedTuple):
    """An entry out of its row, under the row's number, with its embedder's number."""

    seq: int
    entry: Entry


def write_entry(seq: int, entry: Entry, embedder: int, timeline: Timeline) -> EntryRow:
    """The row of an entry.

    Args:
        seq: number of the row.
        entry: of this process.
        embedder: whose vector it has, as the database counts embedders; 0: none.
        timeline: turns its times into wall-clock times.
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
        key.tenant.encode(),
        key.namespace.encode(),
        key.model.encode(),
        key.text.encode(),
        json.dumps(entry.tags).encode(),
        key.scope,
        key.exact,
        entry.answer,
    )
    return (*fields, _checksum(fields))


def read_entry(row: EntryRow, embedder: int, timeline: Timeline) -> Restored:
    """The entry of a row, its age counted on.

    Args:
        row: as the database returns it.
        embedder: the one that is used now; a vector of another one is as good as none.
        timeline: turns its times into this process's.

    Raises:
        CorruptRow: the checksum does not fit.
    """
    *fields, checksum = row
    if _checksum(tuple(fields)) != checksum:
        raise CorruptRow("the checksum of an entry does not fit")
    seq, entry_id, embedded_by, dimension, tokens, created, expires = fields[:7]
    tenant, namespace, model, text, tags, scope, exact, answer = fields[7:]
    entry = Entry(
        entry_id,
        Key(_name(tenant), _name(namespace), _name(model), scope, exact, text.decode()),
        answer,
        () if tags == _NO_TAGS else tuple(json.loads(tags)),
        timeline.from_disk(created),
        timeline.from_disk(expires),
        dimension if embedder and embedded_by == embedder else 0,
        tokens,
    )
    return Restored(seq, entry)


def write_vector(seq: int, entry_id: int, vector: Vector) -> VectorRow:
    """The row of a vector: little-endian float32."""
    fields = (seq, entry_id, vector.astype("<f4").tobytes())
    return (*fields, _checksum(fields))


def read_vector(row: VectorRow) -> tuple[int, Vector]:
    """An entry's id and its vector.

    Raises:
        CorruptRow: the checksum does not fit.
    """
    *fields, checksum = row
    if _checksum(tuple(fields)) != checksum:
        raise CorruptRow("the checksum of a vector does not fit")
    return fields[1], np.frombuffer(fields[2], "<f4").astype(np.float32, copy=False)


@lru_cache(maxsize=1024)
def _name(field: bytes) -> str:
    """A name that many entries share, as one object."""
    return field.decode()


def _checksum(fields: tuple[Any, ...]) -> bytes:
    """Over all fields, whatever type a damaged row has them in."""
    *small, large = fields
    digest = blake2b(repr(small).encode(), digest_size=CHECKSUM_BYTES)
    digest.update(large if isinstance(large, bytes) else repr(large).encode())
    return digest.digest()
