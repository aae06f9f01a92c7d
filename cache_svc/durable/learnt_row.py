"""Rows of what was learnt: bars, judgements and bounds, each with a checksum.

The lineage of a row says under which embedder, judge and bound it was learnt: what
was learnt under others is not believed.
"""

from struct import Struct
from struct import error as StructError  # noqa: N812  # it is a class
from typing import Any, NamedTuple

from xxhash import xxh3_64_digest

from cache_svc.durable.row import CorruptRow

# A request kept out of the semantic tier: its tenant and exact key.
Bar = tuple[str, bytes]
# A tenant and the namespace of it that has a bound of its own; "": all the others.
Bounded = tuple[str, str]
# tenant, exact, checksum.
BarRow = tuple[Any, ...]
# seq, id, sense, right, wrong, lineage, checksum.
JudgementRow = tuple[Any, ...]
# tenant, namespace, lineage, state, checksum.
BoundRow = tuple[Any, ...]
_JUDGEMENT = Struct("<5q")


class Judgement(NamedTuple):
    """What was learnt of one entry.

    Attributes:
        entry_id: of the entry.
        sense: what its answer says, as cache_svc.senses names it; None: never judged.
        right: candidates of it that were judged right.
        wrong: those that were judged wrong.
    """

    entry_id: int
    sense: int | None
    right: int
    wrong: int
    lineage: bytes


class BoundState(NamedTuple):
    """What was learnt of a tenant's namespace; ``state`` as cache_svc.bound.state writes it."""

    tenant: str
    namespace: str
    lineage: bytes
    state: bytes


def write_bar(bar: Bar) -> BarRow:
    """The row of a barred request."""
    tenant, exact = bar
    return tenant, exact, _checksum(tenant.encode(), exact)


def read_bar(row: BarRow) -> Bar:
    """A barred request; raises CorruptRow."""
    tenant, exact, checksum = row
    _check(checksum, tenant, exact)
    return tenant.decode(), exact


def write_judgement(seq: int, judgement: Judgement) -> JudgementRow:
    """The row beside the entry's row of the same number."""
    sense = -1 if judgement.sense is None else judgement.sense
    numbers = (seq, judgement.entry_id, sense, judgement.right, judgement.wrong)
    lineage = judgement.lineage
    return (*numbers, lineage, _checksum(_JUDGEMENT.pack(*numbers), lineage))


def read_judgement(row: JudgementRow) -> Judgement:
    """What was learnt of an entry; raises CorruptRow."""
    *numbers, lineage, checksum = row
    try:
        packed = _JUDGEMENT.pack(*numbers)
    except StructError as error:
        raise CorruptRow(f"a field has another type: {error}") from error
    _check(checksum, packed, lineage)
    _, entry_id, sense, right, wrong = numbers
    return Judgement(entry_id, None if sense < 0 else sense, right, wrong, lineage)


def write_bound(bound: BoundState) -> BoundRow:
    """The row of a bound."""
    tenant, namespace, lineage, state = bound
    return (*bound, _checksum(tenant.encode(), namespace.encode(), lineage, state))


def read_bound(row: BoundRow) -> BoundState:
    """What was learnt of a namespace; raises CorruptRow."""
    tenant, namespace, lineage, state, checksum = row
    _check(checksum, tenant, namespace, lineage, state)
    return BoundState(tenant.decode(), namespace.decode(), lineage, state)


def _check(checksum: Any, *fields: Any) -> None:
    if not all(isinstance(field, bytes) for field in fields) or _checksum(*fields) != checksum:
        raise CorruptRow("the checksum of a row does not fit")


def _checksum(*fields: bytes) -> bytes:
    lengths = b"".join(len(field).to_bytes(4, "little") for field in fields)
    return xxh3_64_digest(lengths + b"".join(fields))
