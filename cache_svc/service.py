"""CacheService: what a router may ask of the sidecar."""

import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from cache_svc.entry import Query, parse_entry_name
from cache_svc.flight_desk import FlightDesk
from cache_svc.intake import Intake, Refused, Stored
from cache_svc.learning import Learning
from cache_svc.lookup import Candidate, Hit, LookupPath, Miss, MissReason, Tier
from cache_svc.prefix_tier import PrefixTier
from cache_svc.quarantine import Quarantine
from cache_svc.stats import Stats
from cache_svc.store import AnswerStore, Clock, Removal, Selection
from cache_svc.wire import check_name, read_query, write_duration, write_outcome
from observability import names
from observability.metrics.cache import StoreMetrics
from observability.metrics.shared import CacheOutcome, LookupMetrics
from sidecache.errors import InvalidRequest, SidecacheError, Unsupported
from sidecache.v1 import cache_pb2, cache_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name


class CacheService(cache_pb2_grpc.CacheServiceServicer):
    """One sidecar's answers to its routers.

    Args:
        fingerprint: of the embedder; empty where the semantic tier is off.
        learning: what the bound on false hits learns from; None: there is none.

    Attributes:
        prefix: what is known of the workers' KV caches; None: nothing is.
    """

    def __init__(
        self,
        path: LookupPath,
        intake: Intake,
        store: AnswerStore,
        quarantine: Quarantine,
        stats: Stats,
        lookup_metrics: LookupMetrics,
        store_metrics: StoreMetrics,
        *,
        fingerprint: str,
        max_store_entries: int,
        clock: Clock,
        flights: FlightDesk,
        learning: Learning | None = None,
    ) -> None:
        self._path = path
        self._intake = intake
        self._store = store
        self._quarantine = quarantine
        self._stats = stats
        self._lookup_metrics = lookup_metrics
        self._store_metrics = store_metrics
        self._fingerprint = fingerprint
        self._max_store_entries = max_store_entries
        self._clock = clock
        self._learning = learning
        self._started_s = clock()
        self.prefix: PrefixTier | None = None
        self._flights = flights

    async def Lookup(
        self, request: cache_pb2.LookupRequest, context: "Context"
    ) -> cache_pb2.LookupResponse:
        return await self.look_up(request, context.time_remaining())

    async def look_up(
        self, request: cache_pb2.LookupRequest, left_s: float | None
    ) -> cache_pb2.LookupResponse:
        """Answer a lookup within the time its caller has left (None: no deadline)."""
        started_s = time.perf_counter()
        if request.HasField("prefix") and not request.HasField("key"):
            return await self._hint_alone(request, left_s)
        query = read_query(request)
        outcome, hint = await self._look_up(query, request, left_s)
        response = write_outcome(outcome)
        if hint is not None:
            response.miss.prefix.CopyFrom(hint)
        if request.HasField("flight") and isinstance(outcome, Miss):
            await self._flights.claim(
                request,
                query,
                outcome,
                response.miss,
                floor=self._path.floor(query),
                left_s=None if left_s is None else left_s - (time.perf_counter() - started_s),
            )
        self._record(query, outcome, time.perf_counter() - started_s)
        return response

    def look_up_at_once(self, request: cache_pb2.LookupRequest) -> cache_pb2.LookupResponse | None:
        """Answer a lookup that waits neither for an embedding nor for tokens.

        Returns:
            None: this one has to; nothing was counted.

        Raises:
            InvalidRequest: naming the field that has a value it may not have.
        """
        started_s = time.perf_counter()
        if not request.HasField("key"):
            return None
        query = read_query(request)
        outcome = self._path.find_at_once(query)
        is_hit = isinstance(outcome, Hit)
        asks_more = request.HasField("prefix") or request.HasField("flight")
        if outcome is None or (asks_more and not is_hit):
            return None
        response = write_outcome(outcome)
        self._record(query, outcome, time.perf_counter() - started_s)
        return response

    async def _look_up(
        self, query: Query, request: cache_pb2.LookupRequest, left_s: float | None
    ) -> tuple[Hit | Miss, cache_pb2.PrefixHint | None]:
        """The outcome, and with a miss the prefix hint that was asked for."""
        exact = self._path.find_exact(query)
        if isinstance(exact, Hit):  # never waits behind an embedding or a tokenizer
            return exact, None
        if self.prefix is None or not request.HasField("prefix"):
            return await self._path.find_similar(query, left_s, exact), None
        async with self.prefix.hints.begin(request.prefix, left_s) as hint:
            outcome = await self._path.find_similar(query, left_s, exact)
            return outcome, await hint.result() if isinstance(outcome, Miss) else None

    async def _hint_alone(
        self, request: cache_pb2.LookupRequest, left_s: float | None
    ) -> cache_pb2.LookupResponse:
        """For a request that stored answers are of no use to."""
        response = cache_pb2.LookupResponse(miss=cache_pb2.CacheMiss())
        if self.prefix is not None:
            async with self.prefix.hints.begin(request.prefix, left_s) as hint:
                found = await hint.result()
            if found is not None:
                response.miss.prefix.CopyFrom(found)
        return response

    async def Store(
        self,
        request: cache_pb2.StoreRequest,
        context: "Context",
    ) -> cache_pb2.StoreResponse:
        return await self.store(request)

    async def store(self, request: cache_pb2.StoreRequest) -> cache_pb2.StoreResponse:
        """Keep the answers that may be kept; says of each what became of it.

        Raises:
            InvalidRequest: they are too many at once.
        """
        count, limit = len(request.entries), self._max_store_entries
        if count > limit:
            raise InvalidRequest(f"are {count}, may be {limit}", field="entries")
        kept = [await self._intake.store(offered) for offered in request.entries]
        response = cache_pb2.StoreResponse()
        settled = await self._intake.settled(kept)
        for offered, outcome in zip(request.entries, settled, strict=True):
            self._flights.answered(offered.key.tenant, offered.key.exact)
            if self._learning is not None and isinstance(outcome, Stored):
                self._learning.stored(outcome.entry, offered)
            response.results.append(self._result(offered.key.tenant, outcome))
        return response

    async def Invalidate(
        self,
        request: cache_pb2.InvalidateRequest,
        context: "Context",
    ) -> cache_pb2.InvalidateResponse:
        selection = _read_selection(request)
        entries = [] if selection is None else self._store.select(request.tenant, selection)
        if not request.dry_run:
            self._store.remove(entries, Removal.INVALIDATED)
            await self._store.removals_settled()
        return cache_pb2.InvalidateResponse(entries=len(entries))

    async def Feedback(
        self,
        request: cache_pb2.FeedbackRequest,
        context: "Context",
    ) -> cache_pb2.FeedbackResponse:
        check_name(request.tenant, "tenant")
        entry_id = parse_entry_name(request.entry_id)
        entry = None if entry_id is None else self._store.get(request.tenant, entry_id)
        if entry is None or not request.wrong:
            return cache_pb2.FeedbackResponse(quarantined=False)
        if self._learning is not None:
            self._learning.complained(entry)
        self._quarantine.bar(entry.key)
        self._store.remove([entry], Removal.INVALIDATED)
        await self._store.removals_settled()
        return cache_pb2.FeedbackResponse(quarantined=True)

    async def HoldFlights(
        self, request: cache_pb2.HoldFlightsRequest, context: "Context"
    ) -> cache_pb2.HoldFlightsResponse:
        return self._flights.hold(request)

    async def AwaitFlight(
        self, request: cache_pb2.AwaitFlightRequest, context: "Context"
    ) -> cache_pb2.AwaitFlightResponse:
        return await self._flights.wait(request)

    async def SetWorkers(
        self,
        request: cache_pb2.SetWorkersRequest,
        context: "Context",
    ) -> cache_pb2.SetWorkersResponse:
        if self.prefix is None:
            raise Unsupported("this sidecar follows no KV caches: prefix.enabled is false")
        self.prefix.set_workers(request)
        return cache_pb2.SetWorkersResponse()

    async def GetStats(
        self,
        request: cache_pb2.GetStatsRequest,
        context: "Context",
    ) -> cache_pb2.GetStatsResponse:
        self._store.expire()
        usage = self._store.usage(request.tenant)
        counters = self._stats.of(request.tenant)
        response = cache_pb2.GetStatsResponse(
            entries=usage.entries,
            bytes=usage.bytes,
            max_bytes=self._store.max_bytes,
            vectors=usage.vectors,
            lookups=counters.lookups,
            exact_hits=counters.exact_hits,
            semantic_hits=counters.semantic_hits,
            misses=counters.misses,
            rejected=counters.rejected,
            stored=counters.stored,
            refused=counters.refused,
            evicted=counters.evicted,
            expired=counters.expired,
            degraded=counters.degraded,
            explored=counters.explored,
            audited=counters.audited,
            audited_wrong=counters.audited_wrong,
            bound_alarms=counters.bound_alarms,
            lost_answers=self._store.lost_answers,
            embedder_fingerprint=self._fingerprint,
            uptime=write_duration(self._clock() - self._started_s),
        )
        if self.prefix is not None:
            self.prefix.write_stats(response)
        return response

    async def Explain(
        self, request: cache_pb2.ExplainRequest, context: "Context"
    ) -> cache_pb2.ExplainResponse:
        query = read_query(request)
        outcome = await self._path.lookup(query, context.time_remaining())
        try:
            candidates = await self._path.explain(query, context.time_remaining())
        except (SidecacheError, TimeoutError):
            candidates = []  # the outcome says DEGRADED or NOT_COMPARABLE, or is exact
        return cache_pb2.ExplainResponse(
            outcome=write_outcome(outcome),
            candidates=map(_write_candidate, candidates),
            threshold=self._path.floor(query),
        )

    def _record(self, query: Query, outcome: Hit | Miss, duration_s: float) -> None:
        tenant = query.key.tenant
        span = trace.get_current_span()
        if isinstance(outcome, Hit):
            self._store.touch(outcome.entry)
            tier = outcome.tier.value
            self._stats.count(tenant, "lookups", f"{tier}_hits")
            self._lookup_metrics.looked_up(_OUTCOMES[outcome.tier], duration_s)
            if span.is_recording():
                span.set_attribute(names.CACHE_OUTCOME, tier)
                span.set_attribute(names.CACHE_ENTRY_AGE_S, outcome.age_s)
                span.set_attribute(names.CACHE_SIMILARITY, outcome.similarity)
            return
        reason = outcome.reason.value
        extra = [reason] if outcome.reason in _COUNTED_MISSES else []
        self._stats.count(tenant, "lookups", "misses", *extra)
        self._lookup_metrics.looked_up("miss", duration_s, miss_reason=reason)
        if span.is_recording():
            span.set_attribute(names.CACHE_OUTCOME, "miss")
            span.set_attribute(names.CACHE_MISS_REASON, reason)
            if outcome.cause:
                span.set_attribute(names.ERROR_TYPE, outcome.cause)

    def _result(self, tenant: str, kept: Stored | Refused) -> cache_pb2.StoreResult:
        if isinstance(kept, Refused):
            self._stats.count(tenant, "refused")
            self._store_metrics.stored("refused")
            return cache_pb2.StoreResult(status=cache_pb2.STORE_STATUS_REFUSED, reason=kept.reason)
        self._stats.count(tenant, "stored")
        self._store_metrics.stored("exact_only" if kept.note else "stored")
        status = cache_pb2.STORE_STATUS_STORED
        if kept.note:
            status = cache_pb2.STORE_STATUS_EXACT_ONLY
        return cache_pb2.StoreResult(status=status, entry_id=kept.entry.name, reason=kept.note)


_OUTCOMES: dict[Tier, CacheOutcome] = {Tier.EXACT: "exact", Tier.SEMANTIC: "semantic"}
_COUNTED_MISSES = {MissReason.REJECTED, MissReason.DEGRADED}


def _read_selection(request: cache_pb2.InvalidateRequest) -> Selection | None:
    """What an invalidation means; None: an entry id that no entry can have.

    Raises:
        InvalidRequest: no tenant, or neither a criterion nor ``all``.
    """
    check_name(request.tenant, "tenant")
    criteria = (request.entry_id, request.tag, request.model, request.HasField("namespace"))
    if not request.all and not any(criteria):
        raise InvalidRequest(
            "name an entry, a tag, a model or a namespace, or set `all` to remove everything",
            field="all",
        )
    entry_id = parse_entry_name(request.entry_id) if request.entry_id else None
    if request.entry_id and entry_id is None:
        return None
    return Selection(
        entry_id=entry_id,
        tag=request.tag or None,
        model=request.model or None,
        namespace=request.namespace if request.HasField("namespace") else None,
    )


def _write_candidate(candidate: Candidate) -> cache_pb2.Candidate:
    return cache_pb2.Candidate(
        entry_id=candidate.entry.name,
        similarity=candidate.similarity,
        accepted=candidate.refusal is None,
        verdict=candidate.verdict,
    )
