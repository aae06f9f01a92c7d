"""The client's one span for a generation, by OpenTelemetry's GenAI conventions.

Attributes are those of the GenAI semantic conventions (status: Development);
content never goes into them. Only opentelemetry-api is needed: without a
provider the span is a no-op that still hands on a trace the caller is in.
"""

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from sidecache.errors import SidecacheError
from sidecache.stream_events import kind_of
from sidecache.transport import split_address
from sidecache.v1 import inference_pb2 as pb

_PROPAGATOR = TraceContextTextMapPropagator()
_REQUEST = "gen_ai.request."
_RESPONSE = "gen_ai.response."
_USAGE = "gen_ai.usage."


class GenerationSpan:
    """A CLIENT span around one Generate call; ends once, however that ends."""

    def __init__(self, tracer: trace.Tracer, request: pb.GenerateRequest, address: str) -> None:
        operation = "chat" if request.WhichOneof("prompt") == "chat" else "text_completion"
        self._span = tracer.start_span(
            f"{operation} {request.model}".rstrip(),
            kind=trace.SpanKind.CLIENT,
            attributes={"gen_ai.operation.name": operation, "gen_ai.provider.name": "sidecache"},
            record_exception=False,
            set_status_on_exception=False,
        )
        self._recording = self._span.is_recording()
        self._finish_reasons: dict[int, str] = {}
        self._completion_tokens = 0
        if self._recording:
            self._span.set_attributes(_request_attributes(request, address))

    def metadata(self) -> list[tuple[str, str]]:
        """The trace headers to send; none when there is no valid span."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return list(carrier.items())

    def record(self, event: pb.GenerateResponse) -> None:
        """Note what `started` and `finished` say."""
        if not self._recording:
            return
        kind = kind_of(event)
        if kind == "started":
            self._span.set_attribute(_RESPONSE + "id", event.started.request_id)
            self._span.set_attribute(_RESPONSE + "model", event.started.model)
            self._span.set_attribute("sidecache.source", pb.Source.Name(event.started.source))
        elif kind == "finished":
            self._record_finished(event.finished)

    def record_first_token(self, ttft_s: float) -> None:
        """Note the time to the first token, in seconds."""
        if self._recording:
            self._span.set_attribute(_RESPONSE + "time_to_first_chunk", ttft_s)

    def record_resumed(self, offset: int) -> None:
        """Note that the connection was lost and the stream went on from this token."""
        if self._recording:
            self._span.add_event("sidecache.resumed", {"sidecache.offset": offset})

    def fail(self, error: SidecacheError) -> None:
        """Mark the span with an error's reason; its text may hold content and stays out."""
        if self._recording:
            self._span.set_attribute("error.type", error.reason)
            self._span.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        """End the span, the first time this is called."""
        if self._span.is_recording():
            self._span.end()

    def _record_finished(self, finished: pb.Finished) -> None:
        usage = finished.usage
        self._finish_reasons[finished.choice] = pb.FinishReason.Name(finished.reason).removeprefix(
            "FINISH_REASON_"
        )
        self._completion_tokens += usage.completion_tokens
        reasons = [self._finish_reasons[choice].lower() for choice in sorted(self._finish_reasons)]
        self._span.set_attribute(_RESPONSE + "finish_reasons", reasons)
        self._span.set_attribute(_USAGE + "input_tokens", usage.prompt_tokens)
        self._span.set_attribute(_USAGE + "output_tokens", self._completion_tokens)
        if usage.HasField("cached_prompt_tokens"):
            self._span.set_attribute(_USAGE + "cache_read.input_tokens", usage.cached_prompt_tokens)


def _request_attributes(request: pb.GenerateRequest, address: str) -> dict[str, AttributeValue]:
    """Attributes known before the call; an unset field leaves its attribute out."""
    host, port = split_address(address)
    attributes: dict[str, AttributeValue] = {_REQUEST + "stream": True, "server.address": host}
    if port is not None:
        attributes["server.port"] = port
    if request.model:
        attributes[_REQUEST + "model"] = request.model
    if request.HasField("max_tokens"):
        attributes[_REQUEST + "max_tokens"] = request.max_tokens
    for name in ("temperature", "top_p", "top_k", "seed"):
        if request.sampling.HasField(name):
            attributes[_REQUEST + name] = getattr(request.sampling, name)
    if request.stop:
        attributes[_REQUEST + "stop_sequences"] = list(request.stop)
    return attributes
