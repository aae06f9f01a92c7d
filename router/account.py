"""The account of one request: what its span and the metrics say of it, once, at its end."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from observability import names
from observability.interceptors.server import is_client_gone
from observability.metrics.shared import CacheOutcome, GenerationMetrics, LookupMetrics, Source
from observability.telemetry import Telemetry
from router.cache_client import Hit, Miss
from router.splits.splits import Splits
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import BrokenInvariant, Cancelled, SidecacheError
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb

_TIERS: dict[int, CacheOutcome] = {
    cache_pb2.TIER_EXACT: "exact",
    cache_pb2.TIER_SEMANTIC: "semantic",
}
_SOURCES: dict[int, Source] = {
    cache_pb2.TIER_EXACT: "exact",
    cache_pb2.TIER_SEMANTIC: "semantic",
}


class Accounts:
    """Opens an account for each request; holds the instruments they share."""

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float], splits: Splits) -> None:
        self.splits = splits
        self.generations = GenerationMetrics(telemetry.meter)
        self.lookups = LookupMetrics(telemetry.meter)
        self.clock = clock

    def open(self, ticket: Ticket) -> "Account":
        """Start the account of one request; its block's end closes it."""
        return Account(self, ticket)


class Account:
    """What happened to one request, told when its block is left."""

    def __init__(self, accounts: Accounts, ticket: Ticket) -> None:
        self._accounts = accounts
        self._ticket = ticket
        self._source: Source = "engine"
        self._first_token_at: float | None = None
        self._output_tokens = 0
        self._prompt_tokens = 0
        self._cached_tokens: int | None = None
        self._lookup_started = ticket.opened_at
        self._tape: Tape | None = None
        self._joined_at = 0.0
        self._span: trace.Span = trace.INVALID_SPAN

    def __enter__(self) -> Self:
        self._lookup_started = self._accounts.clock()
        span = self._span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(_request_attributes(self._ticket))
        return self

    def looked_up(self, outcome: Hit | Miss) -> None:
        """Tell how the lookup ended."""
        now = self._accounts.clock()
        duration_s = now - self._lookup_started
        span = self._span
        if isinstance(outcome, Hit):
            self._source = _SOURCES[outcome.tier]
            # A worker may have begun meanwhile, for nothing.
            self._tape = None
            self._first_token_at = now
            self._output_tokens = sum(len(delta.token_ids) for delta in outcome.answer.deltas)
            self._prompt_tokens = outcome.answer.finished[0].usage.prompt_tokens
            self._accounts.lookups.looked_up(_TIERS[outcome.tier], duration_s)
            if span.is_recording():
                span.set_attribute(names.CACHE_OUTCOME, _TIERS[outcome.tier])
                span.set_attribute(names.CACHE_ENTRY_AGE_S, outcome.age.ToNanoseconds() / 1e9)
        elif outcome.was_looked_up:
            kind: CacheOutcome = "miss" if outcome.is_told else "unavailable"
            self._accounts.lookups.looked_up(kind, duration_s, miss_reason=outcome.reason)
            if span.is_recording():
                span.set_attribute(names.CACHE_OUTCOME, kind)
                span.set_attribute(names.CACHE_MISS_REASON, outcome.reason)

    def looks_again(self) -> None:
        """Tell that another lookup begins."""
        self._lookup_started = self._accounts.clock()

    def coalesced(self, tape: Tape, leader: SpanContext) -> None:
        """Tell that the answer is read along from another caller's stream."""
        self._source = "coalesced"
        if leader.is_valid:
            self._span.add_link(leader)
        self._tape = tape
        self._joined_at = self._accounts.clock()

    def generates(self) -> None:
        """Tell that the answer is generated for this request after all."""
        self._source = "engine"

    def follow(self, tape: Tape) -> Tape:
        """Take the figures from this tape when the stream has ended."""
        self._tape = tape
        return tape

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_: TracebackType | None,
    ) -> None:
        if self._tape is not None:
            self._first_token_at = self._first_token_of(self._tape)
            self._output_tokens = self._tape.tokens
            for finished in self._tape.finished:
                self._prompt_tokens = finished.usage.prompt_tokens
                if finished.usage.HasField("cached_prompt_tokens"):
                    self._cached_tokens = finished.usage.cached_prompt_tokens
        opened_at = self._ticket.opened_at
        first_token_s = None if self._first_token_at is None else self._first_token_at - opened_at
        duration_s = self._accounts.clock() - opened_at
        if self._ticket.split:
            self._accounts.splits.ended(
                self._ticket,
                error,
                from_engine=self._source == "engine",
                first_token_s=first_token_s,
                duration_s=duration_s,
                output_tokens=self._output_tokens,
            )
        self._accounts.generations.finished(
            model=self._ticket.split or self._ticket.model.name,
            variant=self._ticket.variant,
            source=self._source,
            duration_s=duration_s,
            first_token_s=first_token_s,
            input_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            error_type=None if error is None else _error_type(error),
        )
        span = self._span
        if span.is_recording():
            span.set_attribute(names.SOURCE, self._source)
            if first_token_s is not None:
                span.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first_token_s)
            if self._tape is not None and self._source == "engine":
                # A replayed answer is not usage of the model.
                span.set_attribute(names.GEN_AI_USAGE_INPUT_TOKENS, self._prompt_tokens)
                span.set_attribute(names.GEN_AI_USAGE_OUTPUT_TOKENS, self._output_tokens)
                if self._cached_tokens is not None:
                    span.set_attribute(
                        names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, self._cached_tokens
                    )
                span.set_attribute(
                    names.GEN_AI_RESPONSE_FINISH_REASONS,
                    [_reason(finished.reason) for finished in self._tape.finished],
                )

    def _first_token_of(self, tape: Tape) -> float | None:
        """Who joins late gets his first token when he joins."""
        at = tape.first_token_at
        return at if at is None else max(at, self._joined_at)


def _request_attributes(ticket: Ticket) -> dict[str, str | int | float | bool]:
    request, sampling = ticket.request, ticket.request.sampling
    is_chat = request.WhichOneof("prompt") == "chat"
    attributes: dict[str, str | int | float | bool] = {
        names.GEN_AI_OPERATION_NAME: (
            names.OPERATION_CHAT if is_chat else names.OPERATION_TEXT_COMPLETION
        ),
        names.GEN_AI_REQUEST_MODEL: ticket.split or ticket.model.name,
        names.GEN_AI_REQUEST_STREAM: True,
        names.GEN_AI_REQUEST_MAX_TOKENS: request.max_tokens,
        names.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        names.GEN_AI_RESPONSE_ID: ticket.request_id,
        names.GEN_AI_RESPONSE_MODEL: ticket.model.name,
        names.REQUEST_ID: ticket.request_id,
        names.TENANT: ticket.tenant,
    }
    if ticket.split:
        attributes[names.SPLIT] = ticket.split
        attributes[names.VARIANT] = ticket.variant
    if sampling.HasField("top_p"):
        attributes[names.GEN_AI_REQUEST_TOP_P] = sampling.top_p
    if sampling.HasField("seed"):
        # Attribute numbers are signed 64-bit; a seed is not.
        attributes[names.GEN_AI_REQUEST_SEED] = str(sampling.seed)
    return attributes


def _error_type(error: BaseException) -> str:
    if isinstance(error, SidecacheError):
        return error.code.name
    return (Cancelled if is_client_gone(error) else BrokenInvariant).code.name


def _reason(reason: "pb.FinishReason.ValueType") -> str:
    return pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
