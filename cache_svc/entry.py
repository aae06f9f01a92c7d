"""The nouns of the cache: what is asked, and what is kept."""

import secrets
from dataclasses import dataclass
from typing import NamedTuple

from sidecache.errors import SidecacheError

# What an entry costs beside its own bytes: Python objects, dictionary slots, the
# eviction queue and the expiry heap (measured with tracemalloc; a test keeps the
# figure honest).
ENTRY_OVERHEAD_BYTES = 800
# What a vector costs beside its numbers of two bytes: its index where the scope is small; ids,
# sets and the slack of growing arrays where it is large (measured as resident memory).
VECTOR_OVERHEAD_BYTES = 530

_NAME_DIGITS = 16


class DuplicateId(SidecacheError):
    """The id is taken; FAISS itself would keep both vectors."""

    reason = "DUPLICATE_ID"


class Place(NamedTuple):
    """Where an answer may be used: a tenant, and a scope of 32 bytes."""

    tenant: str
    scope: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """Where an answer may be used, and to what.

    Attributes:
        tenant: from the caller's credentials.
        scope: 32 bytes, everything of the request but its last user turn.
        exact: 32 bytes, the whole request.
        text: the last user turn; empty when it cannot be compared by meaning.
    """

    tenant: str
    namespace: str
    model: str
    scope: bytes
    exact: bytes
    text: str

    @property
    def place(self) -> Place:
        """The only place where similarity to this request may be asked."""
        return Place(self.tenant, self.scope)


@dataclass(frozen=True, slots=True)
class Query:
    """One lookup: a key and what the caller accepts.

    Attributes:
        max_age_s: oldest answer accepted; None: whatever has not expired.
        min_similarity: raises the operator's floor, never lowers it.
    """

    key: Key
    max_age_s: float | None = None
    min_similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One whole answer and the request it answers.

    Attributes:
        id: unique among all tenants; also the vector's id.
        answer: a serialized sidecache.v1.Answer.
        created_s: when it was stored, on the store's monotonic clock.
        expires_s: from when on it is never served; no hit moves it.
        vector_dimension: length of the vector it has in the index; 0: none, and
            the entry is found by its exact key only.
        tokens: what a hit saves, in generated tokens.
    """

    id: int
    key: Key
    answer: bytes
    tags: tuple[str, ...]
    created_s: float
    expires_s: float
    vector_dimension: int
    tokens: int = 0

    @property
    def name(self) -> str:
        """The id as callers see it: 16 hex digits."""
        return f"{self.id:0{_NAME_DIGITS}x}"

    @property
    def size_bytes(self) -> int:
        """What the entry costs in memory, its vector and all bookkeeping counted."""
        key = self.key
        texts = (key.tenant, key.namespace, key.model, key.text, *self.tags)
        size = ENTRY_OVERHEAD_BYTES + len(self.answer) + len(key.scope) + len(key.exact)
        size += sum(map(_string_bytes, texts))
        if self.vector_dimension:
            size += VECTOR_OVERHEAD_BYTES + 2 * self.vector_dimension
        return size


def _string_bytes(text: str) -> int:
    """Upper bound of a string's payload; Python keeps 1 byte a character for ASCII."""
    return len(text) if text.isascii() else 4 * len(text)


def new_entry_id() -> int:
    """A random id that FAISS accepts: 63 bits, so that names cannot be guessed or reused."""
    return secrets.randbits(63)


def parse_entry_name(name: str) -> int | None:
    """The id behind a name, or None when no entry could have that name."""
    if len(name) != _NAME_DIGITS or name.strip("0123456789abcdef"):
        return None
    return int(name, 16)
