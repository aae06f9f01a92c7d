"""The composition root: a running cache sidecar out of its settings."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from cache_svc.departures import Departures
from cache_svc.durable.opening import Opened
from cache_svc.durable.restore import restore_vectors
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.flight_desk import FlightDesk
from cache_svc.gate import Gate
from cache_svc.growing_index import Builder
from cache_svc.intake import Intake, IntakeLimits
from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.learning import Learning
from cache_svc.lexical_guard import LexicalGuard
from cache_svc.link import open_link
from cache_svc.lookup import LookupPath, SemanticTier
from cache_svc.new_entry_rate import NewEntryRate
from cache_svc.open_embedder import open_queue
from cache_svc.open_gate import OpenGate, open_gate
from cache_svc.open_index import OpenIndex, open_index
from cache_svc.open_store import keep_learnt, keep_swept, open_durable, open_store
from cache_svc.owned_task import owned_task
from cache_svc.prefix_tier import open_prefix_tier
from cache_svc.quarantine import Quarantine
from cache_svc.questions_in_flight import QuestionsInFlight
from cache_svc.reembedding import Reembedding
from cache_svc.scoped_index import ScopedIndex
from cache_svc.service import SERVICE_NAME, CacheService
from cache_svc.settings import CacheSettings, SemanticSettings
from cache_svc.stats import Stats
from cache_svc.store import AnswerStore, Clock
from cache_svc.verifier import PairVerifier
from observability.metrics.cache import StoreMetrics
from observability.metrics.shared import LookupMetrics
from observability.server import RunningServer, open_server
from observability.telemetry import Telemetry
from sidecache.v1 import cache_pb2_grpc


@dataclass(frozen=True, slots=True)
class _Shared:
    """What most parts of one sidecar are made from; ``queue`` None: the semantic tier is off."""

    settings: CacheSettings
    telemetry: Telemetry
    clock: Clock
    stats: Stats
    queue: EmbeddingQueue | None
    indexes: OpenIndex
    executor: Executor

    @property
    def index(self) -> ScopedIndex:
        """The vectors of every scope."""
        return self.indexes.scoped


@asynccontextmanager
async def serve(
    settings: CacheSettings, telemetry: Telemetry, *, clock: Clock = time.monotonic
) -> AsyncIterator[RunningServer]:
    """Serve until the block is left.

    Stored answers are back before the first call is taken; their vectors follow beside it.

    Raises:
        SetupError: the embedder cannot be loaded, the store not opened, or the address
            not listened on.
    """
    async with AsyncExitStack() as stack:
        shared = await _open_shared(stack, settings, telemetry, clock)
        queue = shared.queue
        departures = Departures(shared.index, shared.stats)
        durable = await open_durable(stack, settings, queue, clock, departures)
        store = open_store(settings, durable, clock, departures)
        departures.metrics = _store_metrics(telemetry, store)
        opened = _open_gate(shared, durable)
        tier = await _open_tier(shared, None if opened is None else opened.gate)
        quarantine = _open_quarantine(settings.semantic, durable)
        learning = _open_learning(shared, tier, store)
        service = _service(shared, store, tier, quarantine, learning, departures.metrics)
        if learning is not None:
            await stack.enter_async_context(owned_task(learning.run(), "learning"))
        if durable is not None:
            returning = _bring_vectors_back(durable, shared, quarantine)
            await stack.enter_async_context(owned_task(returning, "vectors from disk"))
            learnt = None if opened is None else opened.learnt
            keeping = keep_learnt(durable.store, learnt, settings.store.learnt_interval_s)
            await stack.enter_async_context(owned_task(keeping, "learnt to disk"))
        service.prefix = await stack.enter_async_context(
            open_prefix_tier(settings.prefix, telemetry)
        )
        sweep = keep_swept(store, settings.sweep_interval_s)
        await stack.enter_async_context(owned_task(sweep, "expiry sweep"))

        def register(server: grpc.aio.Server) -> None:
            cache_pb2_grpc.add_CacheServiceServicer_to_server(service, server)

        link = await stack.enter_async_context(
            open_link(service, telemetry, settings.server, SERVICE_NAME)
        )
        yield await stack.enter_async_context(
            open_server(
                settings.server,
                telemetry,
                register,
                services=[SERVICE_NAME],
                end_streams=None if link is None else link.close,
            )
        )


async def _open_shared(
    stack: AsyncExitStack, settings: CacheSettings, telemetry: Telemetry, clock: Clock
) -> _Shared:
    """The embedder's queue, the threads, and an index that is empty yet."""
    threads = settings.semantic.search_threads
    executor = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="search"))
    builder = stack.enter_context(Builder())
    queue = None
    if settings.semantic.enabled:
        queue = await stack.enter_async_context(open_queue(settings.semantic))
    indexes = await asyncio.to_thread(_open_index, settings, queue, executor, builder)
    return _Shared(settings, telemetry, clock, Stats(), queue, indexes, executor)


def _open_quarantine(settings: SemanticSettings, durable: Opened | None) -> Quarantine:
    if durable is None:
        return Quarantine(settings.max_quarantined)
    return Quarantine(
        settings.max_quarantined, barred=durable.bars, on_change=durable.store.set_bar
    )


async def _bring_vectors_back(durable: Opened, shared: _Shared, quarantine: Quarantine) -> None:
    """Make stored answers comparable again: from disk, or anew after a change of embedder."""
    index, queue, store = shared.index, shared.queue, durable.store
    await shared.indexes.bring_back(store)
    await restore_vectors(durable.vectors, store, index)
    if queue is not None:
        stale = store.without_vector()
        share = shared.settings.semantic.reembed_share
        await Reembedding(store, store.put, index, queue, quarantine, share=share).run(stale)


def _open_index(
    settings: CacheSettings,
    queue: EmbeddingQueue | None,
    executor: Executor,
    builder: Builder,
) -> OpenIndex:
    return open_index(
        settings,
        executor,
        builder,
        dimension=0 if queue is None else queue.dimension,
        fingerprint="" if queue is None else queue.fingerprint,
    )


def _store_metrics(telemetry: Telemetry, store: AnswerStore) -> StoreMetrics:
    return StoreMetrics(
        telemetry.meter,
        lambda: store.usage().entries,
        lambda: store.usage().bytes,
        lambda: store.lost_answers,
    )


def _open_learning(
    shared: _Shared, tier: SemanticTier | None, store: AnswerStore
) -> Learning | None:
    """What teaches the bound on false hits; None where there is none."""
    if shared.queue is None or tier is None or tier.gate is None:
        return None
    waiting = shared.settings.semantic.max_waiting
    return Learning(tier.gate, store, shared.queue, shared.index, max_waiting=waiting)


def _service(
    shared: _Shared,
    store: AnswerStore,
    tier: SemanticTier | None,
    quarantine: Quarantine,
    learning: Learning | None,
    store_metrics: StoreMetrics,
) -> CacheService:
    """The service over parts that exist."""
    settings, queue, clock = shared.settings, shared.queue, shared.clock
    admission = settings.admission
    rate = NewEntryRate(admission.new_entries_per_s, admission.burst, clock)
    return CacheService(
        LookupPath(store, tier, clock, shared.telemetry.tracer),
        Intake(store, shared.index, queue, quarantine, _limits(settings), clock, rate),
        store,
        quarantine,
        shared.stats,
        LookupMetrics(shared.telemetry.meter),
        store_metrics,
        fingerprint="" if queue is None else queue.fingerprint,
        max_store_entries=settings.max_store_entries,
        clock=clock,
        flights=_flights(settings, tier, clock),
        learning=learning,
    )


def _flights(settings: CacheSettings, tier: SemanticTier | None, clock: Clock) -> FlightDesk:
    flights, questions = settings.flights, None
    if tier is not None:
        questions = QuestionsInFlight(tier, flights.paraphrase_similarity)
    return FlightDesk(clock, flights.lease_s, questions, settings.semantic.budget_s)


def _open_gate(shared: _Shared, durable: Opened | None) -> OpenGate | None:
    """The bound on false hits, with what it learnt before; None where it is off."""
    if shared.queue is None:
        return None
    bound = shared.settings.semantic.bound
    return open_gate(bound, shared.queue, shared.stats, shared.telemetry.meter, durable)


async def _open_tier(shared: _Shared, gate: Gate | None) -> SemanticTier | None:
    """The semantic tier; None where it is off."""
    settings, queue = shared.settings.semantic, shared.queue
    if queue is None:
        return None
    verifier = await asyncio.to_thread(_load_verifier, settings)
    return SemanticTier(
        queue,
        shared.index,
        verifier,
        min_similarity=settings.min_similarity,
        neighbors=settings.neighbors,
        budget_s=settings.budget_s,
        executor=shared.executor,
        gate=gate,
    )


def _limits(settings: CacheSettings) -> IntakeLimits:
    return IntakeLimits(
        default_ttl_s=settings.default_ttl_s,
        max_ttl_s=settings.max_ttl_s,
        max_answer_bytes=settings.max_answer_bytes,
        max_tags=settings.max_tags,
    )


def _load_verifier(settings: SemanticSettings) -> PairVerifier:
    """The verifier that the settings name; a tier that is off needs no weights."""
    learned = settings.enabled and settings.verifier == "learned"
    return LearnedVerifier() if learned else LexicalGuard()
