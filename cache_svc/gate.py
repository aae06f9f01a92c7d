"""The bound at work: a gate behind the verifier, and the judgements that teach it.

On the way out it decides whether a verified candidate is served, and remembers
the pair that is to be judged. On the way in, when the router stores the fresh
answer, it has both answers and judges the pair itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cache_svc.bound.bounds import Bounds
from cache_svc.bound.evidence import Evidence, Neighbour, weigh
from cache_svc.bound.scope import Decision
from cache_svc.entry import Entry, Key
from cache_svc.judge import Judge, answer_text
from cache_svc.senses import Senses
from cache_svc.vector_index import Neighbor
from sidecache.v1 import cache_pb2

# Distinct senses around a new answer that it is compared with, nearest first.
_MAX_JUDGED = 3
# No entry has this id.
_UNBORN = -1


class Outcome(NamedTuple):
    """What the gate decided about one candidate of a request."""

    serve: bool
    audit: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Pending:
    """A pair whose fresh answer is awaited."""

    entry: Entry
    evidence: Evidence
    risk: float
    audit: bool


class Gate:
    """Decides about candidates, and learns from answers. Used from the event loop only.

    Args:
        report: counts "explored", "audited" and "audited_wrong" of a tenant.
        company: how many of the nearest answers have a voice about a candidate.
        max_pending: pairs awaiting their fresh answer; the oldest is given up beyond.
    """

    def __init__(
        self,
        bounds: Bounds,
        senses: Senses,
        judge: Judge,
        report: Callable[[str, str], None],
        *,
        company: int,
        max_pending: int,
    ) -> None:
        self._bounds = bounds
        self._senses = senses
        self._judge = judge
        self._report = report
        self.company = company
        self._max_pending = max_pending
        self._pending: OrderedDict[tuple[str, bytes], _Pending] = OrderedDict()

    def assess(
        self, key: Key, entry: Entry, similarity: float, neighbors: Iterable[Neighbor]
    ) -> Decision:
        """What a lookup would be told about a candidate; changes nothing."""
        evidence = self._evidence(entry, similarity, neighbors)
        return self._bounds.of(key.tenant, key.namespace).assess(entry.id, evidence)

    def foresee(self, key: Key, similarity: float) -> bool:
        """Whether an answer that is not there yet would be served now; changes nothing.

        It would have no record and no company yet: the least evidence there can be.
        """
        evidence = Evidence(similarity, None)
        return self._bounds.of(key.tenant, key.namespace).assess(_UNBORN, evidence).serve

    def pass_through(
        self, key: Key, entry: Entry, similarity: float, neighbors: Iterable[Neighbor]
    ) -> Outcome:
        """Decide about the candidate of a real request, and remember what must be judged."""
        evidence = self._evidence(entry, similarity, neighbors)
        bound = self._bounds.of(key.tenant, key.namespace)
        decision = bound.decide(entry.id, evidence)
        audit = decision.serve and bound.draws_audit()
        if audit or not decision.serve:
            self._await(key, _Pending(entry, evidence, decision.risk, audit))
        if not decision.serve:
            self._report(key.tenant, "explored")
        return Outcome(decision.serve, audit, decision.reason)

    async def stored(
        self, entry: Entry, answer: cache_pb2.Answer, neighbors: Sequence[Entry], audits: str
    ) -> None:
        """Learn from a fresh answer.

        Args:
            entry: as which the answer was stored.
            answer: the same, parsed.
            neighbors: what is stored around it, nearest first, itself left out.
            audits: the entry that a router says it audited; empty: none.
        """
        text = answer_text(answer)
        pending = self._pending.get((entry.key.tenant, entry.key.exact))
        # An answer that came by another way must not stand for an audit.
        if pending is not None and audits == (pending.entry.name if pending.audit else ""):
            del self._pending[entry.key.tenant, entry.key.exact]
            await self._learn(entry.key, pending, text)
        await self._give_sense(entry, text, neighbors)

    def complained(self, entry: Entry) -> None:
        """Learn that a hit on this entry was reported as wrong."""
        self._bounds.of(entry.key.tenant, entry.key.namespace).complained(entry.id)

    def _evidence(self, entry: Entry, similarity: float, neighbors: Iterable[Neighbor]) -> Evidence:
        others = (Neighbour(near, self._senses.of(i)) for i, near in neighbors if i != entry.id)
        return weigh(Neighbour(similarity, self._senses.of(entry.id)), others)

    def _await(self, key: Key, pending: _Pending) -> None:
        self._pending[key.tenant, key.exact] = pending
        self._pending.move_to_end((key.tenant, key.exact))
        if len(self._pending) > self._max_pending:
            self._pending.popitem(last=False)

    async def _learn(self, key: Key, pending: _Pending, text: str) -> None:
        same = await self._judge.same(text, stored_text(pending.entry))
        if same is None:
            return
        bound = self._bounds.of(key.tenant, key.namespace)
        entry_id, evidence = pending.entry.id, pending.evidence
        if pending.audit:
            bound.audited(entry_id, evidence, pending.risk, wrong=not same)
            self._report(key.tenant, "audited")
            if not same:
                self._report(key.tenant, "audited_wrong")
        else:
            bound.explored(entry_id, evidence, wrong=not same)

    async def _give_sense(self, entry: Entry, text: str, neighbors: Sequence[Entry]) -> None:
        """Find out which of the senses around it a new answer shares."""
        asked: set[int] = set()
        for neighbor in neighbors:
            sense = self._senses.of(neighbor.id)
            if sense is None or sense in asked:
                continue
            asked.add(sense)
            same = await self._judge.same(text, stored_text(neighbor))
            if same is None:
                return
            if same:
                self._senses.give(entry.id, sense)
                return
            if len(asked) == _MAX_JUDGED:
                break
        self._senses.give(entry.id, entry.id)


def stored_text(entry: Entry) -> str:
    """What a stored entry's answer says."""
    return answer_text(cache_pb2.Answer.FromString(entry.answer))
