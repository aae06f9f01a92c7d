"""The router's side of the cache: fails open, and never costs more than its deadline."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf import duration_pb2

from router.breaker import Breaker
from router.cache_link import CacheLink
from router.model import ServedModel
from router.prefix import PrefixHint
from router.settings import LookupSettings
from router.ticket import Ticket
from sidecache.errors import DeadlineExceeded, InvalidRequest, SidecacheError, from_rpc_error
from sidecache.v1 import cache_pb2, cache_pb2_grpc

log = logging.getLogger(__name__)

# What has a tier that is not known here may go by rules that are not.
_TIERS = frozenset((cache_pb2.TIER_EXACT, cache_pb2.TIER_SEMANTIC))


_REASONS = {
    reason: name.removeprefix("MISS_REASON_").lower()
    for name, reason in cache_pb2.MissReason.items()
}
# Reasons that are the sidecar's own word; anything else means it did not answer.
_TOLD = frozenset(_REASONS.values())
# No lookup was due.
_NOT_LOOKED_UP = frozenset(("not_asked", "off"))
# Answers stored in one call.
_BATCH = 32
# Between two calls that are not full: under load a store by itself costs both sides several
# times what an answer more in one does. Far below what router.flights bridges for who asks again.
_STORE_DISTANCE_S = 0.02
# More than that at once would hold up the lookups behind it on the link.
_MAX_LINKED_BYTES = 64 << 10


def _wants_none(_model: ServedModel) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored answer that may be served; ``audit``: and is to be generated again."""

    tier: "cache_pb2.Tier.ValueType"
    entry_id: str
    age: duration_pb2.Duration
    answer: cache_pb2.Answer
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """No stored answer, and why: a MissReason's name, or what ails the cache.

    ``prefix``: what the sidecar knows about the workers' KV caches; None: nothing.
    ``flight``: another router that generates this answer now; None: none is known.
    ``paraphrase``: a question under way whose answer would do; None: none is known.
    """

    reason: str
    prefix: PrefixHint | None = None
    flight: cache_pb2.FlightLease | None = None
    paraphrase: cache_pb2.FlightParaphrase | None = None

    @property
    def is_told(self) -> bool:
        """Whether the sidecar itself said so; otherwise it was not asked, or did not answer."""
        return self.reason in _TOLD

    @property
    def was_looked_up(self) -> bool:
        """Whether a stored answer was looked for, however that went."""
        return self.reason not in _NOT_LOOKED_UP


class Cache(Protocol):
    """What the request path asks of a cache."""

    async def lookup(self, ticket: Ticket, *, awaits: bool = True) -> Hit | Miss:
        """Return a stored answer if there is one; a sick cache is a Miss.

        ``awaits``: a miss may name a question to wait for, where the settings allow it.
        """
        ...

    def store_soon(
        self, ticket: Ticket, answer: cache_pb2.Answer | None, audits_entry_id: str = ""
    ) -> None:
        """Keep a whole answer, in the background; None is what may not be kept.

        ``audits_entry_id`` names the hit that the answer was generated again for.
        """
        ...

    async def run(self) -> None:
        """Do the background work until cancelled."""
        ...


class NoCache:
    """A router without a sidecar."""

    async def lookup(self, ticket: Ticket, *, awaits: bool = True) -> Hit | Miss:
        return Miss("off")

    def store_soon(
        self, ticket: Ticket, answer: cache_pb2.Answer | None, audits_entry_id: str = ""
    ) -> None:
        pass

    async def run(self) -> None:
        pass


class CacheClient:
    """A cache sidecar behind a deadline, a breaker and a bounded queue.

    Args:
        wants_hint: whether it matters which worker of a model gets a request.
        claim: what is said of this router with each lookup whose answer may be shared; None:
            nothing.
        link: the short way to the same sidecar; None: there is none.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        settings: LookupSettings,
        clock: Callable[[], float],
        wants_hint: Callable[[ServedModel], bool] = _wants_none,
        claim: cache_pb2.FlightClaim | None = None,
        link: CacheLink | None = None,
    ) -> None:
        self._claim = claim
        self._link = link
        self._wants_hint = wants_hint
        self._stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._settings = settings
        self._breaker = Breaker(settings.failures_to_open, settings.open_s, clock)
        self._pending: deque[cache_pb2.StoreEntry] = deque()
        self._pending_bytes = 0
        self._has_pending = asyncio.Event()
        self._all_stored = asyncio.Event()
        self._all_stored.set()
        self.stores_dropped = 0

    async def lookup(self, ticket: Ticket, *, awaits: bool = True) -> Hit | Miss:
        is_asked = ticket.key is not None and ticket.may_look_up
        hinted = not ticket.only_if_cached and self._wants_hint(ticket.model)
        if not is_asked and not hinted:
            return Miss("not_asked")
        limit_s = self._settings.lookup_timeout_s
        hurried = ticket.timeout_s < limit_s
        # A probe takes its full time, or it would find out nothing.
        if (hurried and self._breaker.is_open) or not self._breaker.admit():
            return Miss("open")
        try:
            request = lookup_request(ticket) if is_asked else cache_pb2.LookupRequest()
            if hinted:
                add_prefix_query(request, ticket)
            if is_asked and self._claim is not None and ticket.may_store:
                request.flight.CopyFrom(self._claim)
                request.flight.request_id = ticket.request_id
                request.flight.awaits_paraphrase &= awaits
            answer = await self._ask(request, min(limit_s, ticket.timeout_s))
        except SidecacheError as error:
            if _speaks_of_the_sidecar(error, hurried=hurried):
                self._breaker.failed()
            return Miss(error.code.name.lower() if is_asked else "not_asked")
        self._breaker.succeeded()
        hit = answer.hit
        if is_asked and hit.tier in _TIERS and hit.answer.finished:
            return Hit(hit.tier, hit.entry_id, hit.age, hit.answer, hit.audit)
        miss = answer.miss
        prefix = None
        if hinted and miss.HasField("prefix"):
            prefix = PrefixHint.from_sidecar(miss.prefix, ticket.model)
        flight = miss.flight if miss.HasField("flight") else None
        paraphrase = miss.paraphrase if miss.HasField("paraphrase") else None
        reason = _REASONS.get(miss.reason, "unspecified") if is_asked else "not_asked"
        return Miss(reason, prefix, flight, paraphrase)

    def store_soon(
        self, ticket: Ticket, answer: cache_pb2.Answer | None, audits_entry_id: str = ""
    ) -> None:
        if answer is None or ticket.key is None or not ticket.may_store:
            return
        cache = ticket.request.cache
        entry = cache_pb2.StoreEntry(
            key=wire_key(ticket),
            answer=answer,
            tags=cache.tags,
            audits_entry_id=audits_entry_id,
        )
        if cache.HasField("ttl"):
            entry.ttl.CopyFrom(cache.ttl)
        size = entry.ByteSize()
        full = len(self._pending) >= self._settings.max_pending_stores
        if full or self._pending_bytes + size > self._settings.max_pending_bytes:
            self.stores_dropped += 1
            return
        self._pending.append(entry)
        self._pending_bytes += size
        self._all_stored.clear()
        self._has_pending.set()

    async def run(self) -> None:
        """Store what is pending, many answers a call, until cancelled."""
        while True:
            await self._has_pending.wait()
            batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
            self._pending_bytes -= sum(entry.ByteSize() for entry in batch)
            await self._store(batch)
            if not self._pending:
                self._has_pending.clear()
                self._all_stored.set()
            if len(self._pending) < _BATCH:
                await asyncio.sleep(_STORE_DISTANCE_S)

    async def flush(self) -> None:
        """Return once nothing is left to store; how long to wait is the caller's to say."""
        await self._all_stored.wait()

    async def _ask(
        self, request: cache_pb2.LookupRequest, timeout_s: float
    ) -> cache_pb2.LookupResponse:
        """By the link while it is up; a call reaches any sidecar."""
        if (link := self._link_for(request)) is not None:
            return await link.look_up(request, timeout_s)
        try:
            return await self._stub.Lookup(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    def _link_for(
        self, request: cache_pb2.LookupRequest | cache_pb2.StoreRequest
    ) -> CacheLink | None:
        link = self._link
        if link is None or not link.is_up or request.ByteSize() > _MAX_LINKED_BYTES:
            return None
        return link

    async def _store(self, batch: list[cache_pb2.StoreEntry]) -> None:
        if self._breaker.is_open:
            self.stores_dropped += len(batch)
            return
        try:
            await self._keep(cache_pb2.StoreRequest(entries=batch))
        except SidecacheError as error:
            self.stores_dropped += len(batch)
            log.warning("answers not stored: %s", error.code.name, extra={"answers": len(batch)})

    async def _keep(self, request: cache_pb2.StoreRequest) -> None:
        timeout_s = self._settings.store_timeout_s
        if (link := self._link_for(request)) is not None:
            await link.store(request, timeout_s)
            return
        try:
            # Nobody waits for it; a sidecar that starts a moment later must not miss it.
            await self._stub.Store(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def lookup_request(ticket: Ticket) -> cache_pb2.LookupRequest:
    """What a ticket asks of the sidecar."""
    cache = ticket.request.cache
    request = cache_pb2.LookupRequest(key=wire_key(ticket))
    if cache.HasField("max_age"):
        request.max_age.CopyFrom(cache.max_age)
    if cache.HasField("min_similarity"):
        request.min_similarity = cache.min_similarity
    return request


def add_prefix_query(request: cache_pb2.LookupRequest, ticket: Ticket) -> None:
    """Also ask which worker holds how much of the prompt."""
    prompt, query = ticket.request, request.prefix
    match prompt.WhichOneof("prompt"):
        case "text":
            query.text = prompt.text
        case "chat":
            query.chat.CopyFrom(prompt.chat)
        case "token_ids":
            query.token_ids.CopyFrom(prompt.token_ids)
    query.model, query.model_revision = ticket.model.name, ticket.model.revision
    query.adapter, query.cache_salt = prompt.adapter, prompt.cache_salt


def wire_key(ticket: Ticket) -> cache_pb2.CacheKey:
    """A ticket's key as the sidecar reads it."""
    key = ticket.key
    if key is None:
        raise ValueError("this request has no cache key")
    return cache_pb2.CacheKey(
        tenant=ticket.tenant,
        namespace=ticket.request.cache.namespace,
        model=ticket.model.name,
        scope=key.scope,
        exact=key.exact,
        semantic_text=key.semantic_text,
    )


def _speaks_of_the_sidecar(error: SidecacheError, *, hurried: bool) -> bool:
    """Whether a failure is the sidecar's own; no caller may shut it for the others.

    Args:
        error: how the lookup ended.
        hurried: the caller allowed less time than a lookup may take.
    """
    if isinstance(error, DeadlineExceeded):
        return not hurried
    return not isinstance(error, InvalidRequest)
