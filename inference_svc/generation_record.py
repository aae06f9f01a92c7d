"""One generation's span and metrics: what the engine did, seen from the worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from inference_svc.engine import GenerationRequest, ModelFacts, TokenDelta
from observability import names
from observability.metrics.shared import GenerationMetrics
from observability.telemetry import Telemetry
from observability.tracing import child_span
from sidecache.errors import SidecacheError


class GenerationRecord:
    """Notes one running generation's times and tokens."""

    def __init__(self, span: Span, request: GenerationRequest) -> None:
        self.output_tokens = 0
        self.first_token_s: float | None = None
        self.cached_prompt_tokens: int | None = None
        self._span = span
        self._reasons = [""] * request.n
        self._began = perf_counter()

    @property
    def age_s(self) -> float:
        """Seconds since the engine was given the request."""
        return perf_counter() - self._began

    def note_cached(self, delta: TokenDelta) -> None:
        """Note what the stream's first delta says of the KV cache."""
        if delta.cached_prompt_tokens is not None:
            self.cached_prompt_tokens = delta.cached_prompt_tokens

    def delivered(self, delta: TokenDelta) -> None:
        """Note a delta that was written."""
        if self.first_token_s is None and delta.token_ids:
            self.first_token_s = self.age_s
        self.output_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._reasons[delta.choice] = delta.finish_reason.value

    def close(self, request: GenerationRequest) -> None:
        """Write what is known now onto the span."""
        if not self._span.is_recording():
            return
        self._span.set_attributes(
            {
                names.GEN_AI_USAGE_INPUT_TOKENS: len(request.prompt_token_ids),
                names.GEN_AI_USAGE_OUTPUT_TOKENS: self.output_tokens,
                names.GEN_AI_RESPONSE_FINISH_REASONS: [each for each in self._reasons if each],
            }
        )
        if self.cached_prompt_tokens is not None:
            self._span.set_attribute(
                names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, self.cached_prompt_tokens
            )
        if self.first_token_s is not None:
            self._span.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, self.first_token_s)


class GenerationRecorder:
    """Opens a record for each generation."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._metrics = GenerationMetrics(telemetry.meter)

    @contextmanager
    def record(self, request: GenerationRequest, facts: ModelFacts) -> Iterator[GenerationRecord]:
        """The span ``chat <model>`` and the metrics of the block, however it ends."""
        name = names.generation_span(names.OPERATION_CHAT, facts.name)
        with child_span(self._tracer, name) as span:
            if span.is_recording():
                span.set_attributes(_request_attributes(request, facts))
            record = GenerationRecord(span, request)
            error_type = None
            try:
                yield record
            except asyncio.CancelledError:
                error_type = "CANCELLED"
                raise
            except SidecacheError as error:
                error_type = error.reason
                raise
            except Exception as error:
                error_type = type(error).__qualname__
                raise
            finally:
                record.close(request)
                self._metrics.finished(
                    model=facts.name,
                    source="engine",
                    duration_s=record.age_s,
                    first_token_s=record.first_token_s,
                    input_tokens=len(request.prompt_token_ids),
                    output_tokens=record.output_tokens,
                    error_type=error_type,
                )


def _request_attributes(request: GenerationRequest, facts: ModelFacts) -> dict[str, AttributeValue]:
    sampling = request.sampling
    attributes: dict[str, AttributeValue] = {
        names.GEN_AI_OPERATION_NAME: names.OPERATION_CHAT,
        names.GEN_AI_PROVIDER_NAME: "sidecache",
        names.GEN_AI_REQUEST_MODEL: facts.name,
        names.GEN_AI_REQUEST_STREAM: True,
        names.GEN_AI_REQUEST_MAX_TOKENS: request.max_tokens,
        names.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        names.GEN_AI_RESPONSE_ID: request.request_id,
        names.GEN_AI_RESPONSE_MODEL: facts.name,
        names.ENGINE: facts.engine,
    }
    if sampling.temperature > 0:
        attributes[names.GEN_AI_REQUEST_TOP_P] = sampling.top_p
        attributes[names.GEN_AI_REQUEST_TOP_K] = sampling.top_k
    if sampling.seed is not None:
        # OpenTelemetry's integers are signed 64 bits; a seed may be larger.
        attributes[names.GEN_AI_REQUEST_SEED] = str(sampling.seed)
    return attributes
