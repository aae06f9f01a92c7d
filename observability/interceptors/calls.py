"""What is recorded about a finished call, alike for both edges."""

import grpc
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.trace import Span, Status, StatusCode

from observability import names

# Semantic conventions: on a server only these are the server's own failure; a
# client counts every status but OK.
SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
CLIENT_FAULTS = frozenset(grpc.StatusCode) - {grpc.StatusCode.OK}


CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class Method:
    """A method's names and the attribute sets of its outcomes, made once.

    Args:
        path: as gRPC has it, "/package.Service/Method".
        target: the address dialled; None: this is the server's side.
        system: what carries the call.
    """

    __slots__ = ("_by_code", "_system", "name", "span_attributes")

    def __init__(self, path: str, target: str | None = None, system: str = names.GRPC) -> None:
        self.name = path.removeprefix("/")
        self._system = system
        self.span_attributes: dict[str, str] = {
            names.RPC_SYSTEM_NAME: system,
            names.RPC_METHOD: self.name,
        }
        if target:
            self.span_attributes[names.SERVER_ADDRESS] = target
        self._by_code: dict[grpc.StatusCode, dict[str, str]] = {}

    def outcome(self, code: grpc.StatusCode) -> dict[str, str]:
        """The metric attributes of a call that ended so; shared, never change it."""
        found = self._by_code.get(code)
        if found is None:
            found = {
                names.RPC_SYSTEM_NAME: self._system,
                names.RPC_METHOD: self.name,
                names.RPC_RESPONSE_STATUS_CODE: code.name,
            }
            if code is not grpc.StatusCode.OK:
                found[names.ERROR_TYPE] = code.name
            self._by_code[code] = found
        return found


def duration_histogram(meter: Meter, name: str, description: str) -> Histogram:
    """A histogram of call durations with the RPC convention's buckets."""
    return meter.create_histogram(
        name,
        unit="s",
        description=description,
        explicit_bucket_boundaries_advisory=names.RPC_DURATION_BUCKETS,
    )


def end_span(
    span: Span, code: grpc.StatusCode, faults: frozenset[grpc.StatusCode], reason: str = ""
) -> None:
    """End a span with its call's status.

    Args:
        span: ended by this.
        code: the status of the call.
        faults: the codes that make the span an error.
        reason: ErrorInfo.reason, for an error of ours.
    """
    span.set_attribute(names.RPC_RESPONSE_STATUS_CODE, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute(names.ERROR_TYPE, code.name)
    if reason:
        span.set_attribute(names.ERROR_REASON, reason)
    if code in faults:
        span.set_status(Status(StatusCode.ERROR))
    span.end()
