"""THE lookup path: exact, then semantic, else why not.

Start here to see what is served and what is not. Each step is a named object:
the store knows what is alive, the queue embeds, the index finds neighbours
inside one scope of one tenant, the verifier has the last word.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import NamedTuple

from opentelemetry.trace import Span, Tracer

from cache_svc.embedder import NotComparable
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Entry, Key, Query
from cache_svc.gate import Gate
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import AnswerStore, Clock
from cache_svc.vector_index import Neighbor
from cache_svc.verifier import Look, PairVerifier, Verdict
from sidecache.errors import SidecacheError

# Time kept back for the answer's way to a caller whose deadline is near.
REPLY_MARGIN_S = 0.005
# Candidates of one lookup that the slow part of a verifier may judge.
MAX_JUDGED = 2


class Tier(Enum):
    """Where a hit was found."""

    EXACT = "exact"
    SEMANTIC = "semantic"


class MissReason(Enum):
    """Why nothing was served."""

    ABSENT = "absent"
    BELOW_THRESHOLD = "below_threshold"
    STALE = "stale"
    REJECTED = "rejected"
    NOT_COMPARABLE = "not_comparable"
    DEGRADED = "degraded"
    EXPLORED = "explored"


# Of several refused neighbours, the reason that came nearest to a hit is told.
_NEARNESS = (MissReason.REJECTED, MissReason.STALE, MissReason.BELOW_THRESHOLD)


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored answer that may be served. ``similarity`` is 1 for an exact hit.

    ``audit``: the router is to generate it again in the background.
    """

    tier: Tier
    entry: Entry
    age_s: float
    similarity: float = 1.0
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing that may be served.

    ``cause``: the kind of failure behind DEGRADED. ``explored``: the entry that the
    fresh answer will be compared with.
    """

    reason: MissReason
    cause: str = ""
    explored: Entry | None = None


class Candidate(NamedTuple):
    """A neighbour and what was decided about it; ``refusal`` None: it may be served."""

    entry: Entry
    similarity: float
    refusal: MissReason | None
    verdict: str


@dataclass(frozen=True, slots=True)
class SemanticTier:
    """Everything similarity needs; absent where the operator turned it off.

    Attributes:
        min_similarity: the operator's floor of cosine similarity.
        neighbors: how many of the nearest are considered, so that one rejected
            look-alike does not hide a true paraphrase behind it.
        budget_s: longest time a lookup may spend here.
        executor: runs what of the verifier is too slow for the event loop.
        max_judged: most candidates of one lookup that go there, which bounds its time;
            of the rest only those are considered that the screen settles.
        gate: the bound on false hits; None: whatever the verifier lets pass is served.
    """

    queue: EmbeddingQueue
    index: ScopedIndex
    verifier: PairVerifier
    min_similarity: float
    neighbors: int
    budget_s: float
    executor: Executor | None = None
    max_judged: int = MAX_JUDGED
    gate: Gate | None = None


def _verified(entry: Entry, similarity: float, verdict: Verdict | None) -> Candidate:
    """The candidate with its verdict; None: nearer ones used up what a lookup may spend."""
    if verdict is None:
        return Candidate(entry, similarity, MissReason.REJECTED, "not judged: nearer ones were")
    if verdict.accepted:
        return Candidate(entry, similarity, None, "accepted")
    return Candidate(entry, similarity, MissReason.REJECTED, f"verifier: {verdict.reason}")


class LookupPath:
    """Answers queries from the store; changes nothing there."""

    def __init__(
        self, store: AnswerStore, semantic: SemanticTier | None, clock: Clock, tracer: Tracer
    ) -> None:
        self._store = store
        self._semantic = semantic
        self._clock = clock
        self._tracer = tracer

    async def lookup(self, query: Query, time_left_s: float | None) -> Hit | Miss:
        """Answer one query, within the time its caller has left (None: no deadline)."""
        exact = self.find_exact(query)
        if isinstance(exact, Hit):  # never waits behind an embedding
            return exact
        return await self.find_similar(query, time_left_s, exact)

    def find_at_once(self, query: Query) -> Hit | Miss | None:
        """What :meth:`lookup` would say where that waits for nothing; None: it would wait."""
        exact = self.find_exact(query)
        if isinstance(exact, Hit):
            return exact
        if self._semantic is not None and query.key.text:
            return None
        return exact if exact.reason is MissReason.STALE else Miss(MissReason.NOT_COMPARABLE)

    async def find_similar(
        self, query: Query, time_left_s: float | None, exact: Miss
    ) -> Hit | Miss:
        """An answer of the same meaning, after the exact tier had none."""
        similar = await self._find_similar(query, time_left_s)
        if isinstance(similar, Miss) and exact.reason is MissReason.STALE:
            return exact
        return similar

    def find_exact(self, query: Query) -> Hit | Miss:
        """The answer to the very same request."""
        entry = self._store.find(query.key.tenant, query.key.exact)
        if entry is None:
            return Miss(MissReason.ABSENT)
        age_s = self._age_s(entry)
        if query.max_age_s is not None and age_s > query.max_age_s:
            return Miss(MissReason.STALE)
        return Hit(Tier.EXACT, entry, age_s)

    def floor(self, query: Query) -> float:
        """The similarity floor of a query: a caller may raise it, never lower it."""
        floor = 1.0 if self._semantic is None else self._semantic.min_similarity
        return floor if query.min_similarity is None else max(floor, query.min_similarity)

    async def explain(self, query: Query, time_left_s: float | None) -> list[Candidate]:
        """Every neighbour a lookup would look at, best first, with its verdict.

        Raises:
            NotComparable: the text is beyond what the embedder sees.
            TimeoutError: the budget or the caller's time is over.
        """
        if self._semantic is None or not query.key.text:
            return []
        async with self._budget(self._semantic, time_left_s):
            neighbors = await self._neighbors(self._semantic, query.key)
            candidates = [one async for one in self._judge(self._semantic, query, neighbors)]
        return self._with_bound(self._semantic.gate, query, neighbors, candidates)

    async def _find_similar(self, query: Query, time_left_s: float | None) -> Hit | Miss:
        """The nearest answer of the same meaning; a failure here is a miss, never an error."""
        semantic = self._semantic
        if semantic is None or not query.key.text:
            return Miss(MissReason.NOT_COMPARABLE)
        try:
            async with self._budget(semantic, time_left_s):
                neighbors = await self._neighbors(semantic, query.key)
                with self._span("cache verify"):
                    async with aclosing(self._judge(semantic, query, neighbors)) as candidates:
                        chosen = await self._choose(candidates)
            return self._pass_through(semantic.gate, query, chosen, neighbors)
        except NotComparable:
            return Miss(MissReason.NOT_COMPARABLE)
        except TimeoutError:
            return Miss(MissReason.DEGRADED, "timeout")
        except SidecacheError as error:
            return Miss(MissReason.DEGRADED, error.reason.lower())
        except Exception as error:  # noqa: BLE001  # a sick tier costs a hit, never the request
            return Miss(MissReason.DEGRADED, type(error).__name__)

    @staticmethod
    def _budget(semantic: SemanticTier, time_left_s: float | None) -> asyncio.Timeout:
        """What a lookup may spend on similarity, within the time its caller has left."""
        if time_left_s is None:
            return asyncio.timeout(semantic.budget_s)
        return asyncio.timeout(min(semantic.budget_s, time_left_s - REPLY_MARGIN_S))

    async def _neighbors(self, semantic: SemanticTier, key: Key) -> list[Neighbor]:
        with self._span("cache embed"):
            vector = await semantic.queue.vector(key.text)
        with self._span("cache search"):
            company = 0 if semantic.gate is None else semantic.gate.company
            k = max(semantic.neighbors, company)
            return await semantic.index.search(key.place, vector, k)

    async def _judge(
        self, semantic: SemanticTier, query: Query, neighbors: Iterable[Neighbor]
    ) -> AsyncGenerator[Candidate, None]:
        """Decide about each neighbour in turn; those that left the store meanwhile are skipped."""
        considered = list(self._consider(semantic, query, neighbors))
        looks = [Look(c.entry.key.text, c.similarity) for c in considered if c.refusal is None]
        screened = semantic.verifier.screen_each(query.key.text, looks)
        may_judge = semantic.max_judged
        for candidate in considered:
            if candidate.refusal is not None:
                yield candidate
                continue
            entry, similarity = candidate.entry, candidate.similarity
            judged = next(screened)
            if judged is None and may_judge > 0:
                may_judge -= 1
                judged = await self._on_thread(semantic, query.key.text, entry.key.text, similarity)
            # Reported wrong, expired or replaced while a thread looked at one of them.
            if self._store.get(query.key.tenant, entry.id) is entry:
                yield _verified(entry, similarity, judged)

    def _consider(
        self, semantic: SemanticTier, query: Query, neighbors: Iterable[Neighbor]
    ) -> Iterator[Candidate]:
        """The neighbours that are alive; of those that the verifier may pass, no refusal."""
        floor = self.floor(query)
        # The bound hears more neighbours than the verifier has time for.
        for entry_id, similarity in islice(neighbors, semantic.neighbors):
            entry = self._store.get(query.key.tenant, entry_id)
            if entry is None or entry.key.place != query.key.place:
                continue
            if similarity < floor:
                verdict = f"similarity {similarity:.3f} is under {floor:.3f}"
                yield Candidate(entry, similarity, MissReason.BELOW_THRESHOLD, verdict)
            elif query.max_age_s is not None and self._age_s(entry) > query.max_age_s:
                yield Candidate(entry, similarity, MissReason.STALE, "older than max_age")
            else:
                yield Candidate(entry, similarity, None, "not verified yet")

    @staticmethod
    async def _on_thread(
        semantic: SemanticTier, query: str, candidate: str, similarity: float
    ) -> Verdict:
        """Only the costly part of the verifier changes the thread."""
        verify = semantic.verifier.verify
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(semantic.executor, verify, query, candidate, similarity)

    async def _choose(self, candidates: AsyncGenerator[Candidate, None]) -> Hit | Miss:
        """The nearest candidate that passed everything, or the best reason why none did."""
        refusals = set()
        async for candidate in candidates:
            if candidate.refusal is None:
                age_s = self._age_s(candidate.entry)
                return Hit(Tier.SEMANTIC, candidate.entry, age_s, candidate.similarity)
            refusals.add(candidate.refusal)
        nearest = (reason for reason in _NEARNESS if reason in refusals)
        return Miss(next(nearest, MissReason.ABSENT))

    @staticmethod
    def _pass_through(
        gate: Gate | None, query: Query, chosen: Hit | Miss, neighbors: list[Neighbor]
    ) -> Hit | Miss:
        """Serve what the bound allows; explore the rest."""
        if gate is None or isinstance(chosen, Miss):
            return chosen
        outcome = gate.pass_through(query.key, chosen.entry, chosen.similarity, neighbors)
        if not outcome.serve:
            return Miss(MissReason.EXPLORED, explored=chosen.entry)
        return replace(chosen, audit=outcome.audit)

    @staticmethod
    def _with_bound(
        gate: Gate | None, query: Query, neighbors: list[Neighbor], candidates: list[Candidate]
    ) -> list[Candidate]:
        """The candidates, the one that would be served with what the bound says of it."""
        chosen = next((at for at, c in enumerate(candidates) if c.refusal is None), None)
        if gate is not None and chosen is not None:
            candidate = candidates[chosen]
            decision = gate.assess(query.key, candidate.entry, candidate.similarity, neighbors)
            candidates[chosen] = candidate._replace(
                refusal=None if decision.serve else MissReason.EXPLORED, verdict=decision.reason
            )
        return candidates

    def _span(self, name: str) -> AbstractContextManager[Span]:
        # An exception's text could quote a prompt; content stays out of telemetry.
        return self._tracer.start_as_current_span(name, record_exception=False)

    def _age_s(self, entry: Entry) -> float:
        return max(0.0, self._clock() - entry.created_s)
