"""What the bound on false hits has learnt, kept beside the answers for the next start.

Changes are gathered and written about once a second, so a crash forgets the last
second's observations, never more; an alarm is written at once, since a scope that
fell back to exact hits must not come back serving.
"""

import hashlib
import logging
from collections.abc import Iterable
from itertools import islice

from pydantic import ValidationError

from cache_svc.bound.bounds import Bounds
from cache_svc.bound.scope import Regime
from cache_svc.bound.snapshot import ScopeSnapshot
from cache_svc.bound_settings import BoundSettings
from cache_svc.durable.learnt_row import BoundState, Judgement
from cache_svc.durable.store import DurableStore
from cache_svc.senses import Senses

_log = logging.getLogger(__name__)
# A new meaning of bands, senses or records gets a new number.
_FORM = 1
# Entries and scopes of one write: a millisecond or so of the event loop each.
_ENTRIES_AT_ONCE = 1000
_SCOPES_AT_ONCE = 20


def lineage(settings: BoundSettings, fingerprint: str) -> bytes:
    """What must be the same for something learnt to hold: embedder, judge, and its noise.

    δ is not part of it: each tenant's stands in its own snapshot.
    """
    said = (
        _FORM,
        fingerprint,
        settings.judge_min_similarity,
        settings.judge_chars,
        settings.judge_false_accept,
        settings.judge_false_reject,
    )
    return hashlib.blake2b(repr(said).encode(), digest_size=8).digest()


class Learnt:
    """Carries tallies, alarms, records and senses over a restart.

    Args:
        changed: entries judged since the last write; emptied by it.
        own: the lineage in use.
    """

    def __init__(
        self,
        bounds: Bounds,
        senses: Senses,
        store: DurableStore,
        changed: dict[int, None],
        own: bytes,
    ) -> None:
        self._bounds = bounds
        self._senses = senses
        self._store = store
        self._changed = changed
        self._own = own
        # By tenant and namespace, the scope's count of changes when it was last written;
        # written longest ago first.
        self._written: dict[tuple[str, str], int] = {}

    def bring_back(self, judgements: Iterable[Judgement], bounds: Iterable[BoundState]) -> None:
        """Take in what an earlier process wrote; what does not fit is learnt again."""
        for tenant, namespace, _, state in bounds:
            try:
                snapshot = ScopeSnapshot.model_validate_json(state)
            except ValidationError:
                _log.warning("a bound on disk is no bound; it is learnt again")
                continue
            self._bring_scope_back(tenant, namespace, snapshot)
        for judgement in judgements:
            entry = self._store.by_id(judgement.entry_id)
            if entry is None:
                continue
            if judgement.sense is not None:
                self._senses.give(judgement.entry_id, judgement.sense)
            if judgement.right or judgement.wrong:
                bound = self._bounds.of(entry.key.tenant, entry.key.namespace)
                bound.bring_record_back(judgement.entry_id, judgement.right, judgement.wrong)
        self._changed.clear()

    def write(self) -> None:
        """Hand what changed since the last time to the store; a bounded part of it."""
        due = list(islice(self._changed, _ENTRIES_AT_ONCE))
        for entry_id in due:
            del self._changed[entry_id]
        judgements = [one for one in map(self._judgement, due) if one is not None]
        scopes = self._scopes_due()
        self._store.write_learnt(judgements, [self._state(*scope) for scope in scopes])

    def write_scope(self, tenant: str, namespace: str) -> None:
        """Hand one scope to the store now."""
        self._store.write_learnt([], [self._state(tenant, namespace)])

    def _bring_scope_back(self, tenant: str, namespace: str, snapshot: ScopeSnapshot) -> None:
        bound = self._bounds.own(tenant, namespace)
        fields = {"tenant": tenant, "namespace": namespace}
        if bound is None or bound.delta != snapshot.delta:
            _log.warning("the bound of a tenant was set anew: it is learnt again", extra=fields)
            return
        bound.resume(snapshot)
        if bound.regime is Regime.EXACT_ONLY:
            _log.warning("semantic hits were wrong before the restart: exact only", extra=fields)
        self._written[tenant, namespace] = bound.changes

    def _scopes_due(self) -> list[tuple[str, str]]:
        """Scopes that changed; those written longest ago first."""
        scopes = dict(self._bounds.items())
        changed = [at for at, bound in scopes.items() if self._written.get(at) != bound.changes]
        waiting = {at: place for place, at in enumerate(self._written)}
        changed.sort(key=lambda at: waiting.get(at, -1))
        due = changed[:_SCOPES_AT_ONCE]
        for at in due:
            self._written.pop(at, None)
            self._written[at] = scopes[at].changes
        for gone in self._written.keys() - scopes.keys():
            del self._written[gone]
        return due

    def _state(self, tenant: str, namespace: str) -> BoundState:
        bound = self._bounds.own(tenant, namespace)
        if bound is None:
            raise LookupError(f"{tenant}/{namespace} has no bound of its own")
        state = bound.snapshot().model_dump_json().encode()
        return BoundState(tenant, namespace, self._own, state)

    def _judgement(self, entry_id: int) -> Judgement | None:
        entry = self._store.by_id(entry_id)
        if entry is None:
            return None
        bound = self._bounds.of(entry.key.tenant, entry.key.namespace)
        right, wrong = bound.record_of(entry_id)
        return Judgement(entry_id, self._senses.of(entry_id), right, wrong, self._own)
