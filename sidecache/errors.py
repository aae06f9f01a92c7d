"""The error tree, and its one mapping to and from gRPC status.

::

    SidecacheError
    ├── InvalidRequest        INVALID_ARGUMENT    + BadRequest   fix the request
    │   └── PromptTooLong
    ├── Unauthenticated       UNAUTHENTICATED                    fix the credentials
    ├── Forbidden             PERMISSION_DENIED                  fix the credentials
    ├── NotFound              NOT_FOUND           + ResourceInfo name something that exists
    │   ├── ModelNotFound
    │   └── NotCached                                            ask without only-if-cached
    ├── Overloaded            RESOURCE_EXHAUSTED  + RetryInfo    back off
    │   └── QuotaExceeded                         + QuotaFailure
    ├── Unavailable           UNAVAILABLE                        retry this call
    │   ├── NoHealthyWorker
    │   ├── Draining                                             ask another server
    │   └── EngineFailed
    ├── StreamInterrupted     ABORTED                            restart the generation
    ├── DeadlineExceeded      DEADLINE_EXCEEDED                  allow more time
    ├── Cancelled             CANCELLED                          its own doing
    ├── Unsupported           UNIMPLEMENTED                      ask for something else
    ├── BrokenInvariant       INTERNAL                           report it
    └── SetupError            FAILED_PRECONDITION                fix the installation

Domain code raises these and never imports grpc; one server interceptor turns
them into a status with google.rpc details, and the client turns that status
back into the same class. Every status carries an ErrorInfo whose ``reason`` is
the class's own, so nobody has to parse a message.
"""

from collections.abc import Iterator
from typing import ClassVar, Self, TypeVar

import grpc
from google.protobuf import duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "sidecache"

M = TypeVar("M", bound=message.Message)


def _detail(status: status_pb2.Status, kind: type[M]) -> M:
    """The first detail of this kind, or an empty one."""
    found = kind()
    for packed in status.details:
        if packed.Unpack(found):
            break
    return found


class SidecacheError(Exception):
    """Anything that Sidecache itself reports.

    Args:
        text: what was wrong, what it was and what it may be.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def details(self) -> list[message.Message]:
        """The google.rpc messages that go with the status, after its ErrorInfo."""
        return []

    def metadata(self) -> dict[str, str]:
        """Facts for ErrorInfo.metadata; never content of a request."""
        return {}

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        """Build this error again from what :func:`to_status` made of it."""
        return cls(status.message)


class InvalidRequest(SidecacheError):
    """A field of the request has a value it may not have."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, text: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.field = field
        self.problem = text

    def details(self) -> list[message.Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=self.field, description=self.problem
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        for violation in _detail(status, error_details_pb2.BadRequest).field_violations:
            return cls(violation.description, field=violation.field)
        return cls(status.message)


class PromptTooLong(InvalidRequest):
    """Prompt and answer together do not fit the model's context."""

    reason = "PROMPT_TOO_LONG"


class Unauthenticated(SidecacheError):
    """No credentials, or wrong ones."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Forbidden(SidecacheError):
    """Good credentials without the right to do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "FORBIDDEN"


class NotFound(SidecacheError):
    """Something named in the request does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, text: str, *, kind: str = "", name: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.name = name

    def details(self) -> list[message.Message]:
        return [
            error_details_pb2.ResourceInfo(
                resource_type=self.kind, resource_name=self.name, description=self.text
            )
        ]

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        resource = _detail(status, error_details_pb2.ResourceInfo)
        return cls(status.message, kind=resource.resource_type, name=resource.resource_name)


class ModelNotFound(NotFound):
    """No worker serves this model."""

    reason = "MODEL_NOT_FOUND"


class NotCached(NotFound):
    """The request asked for a cached answer or nothing, and there is none."""

    reason = "NOT_CACHED"


class Overloaded(SidecacheError):
    """Refused early, because it could not be served in time."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, text: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s

    def details(self) -> list[message.Message]:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(self.retry_after_s * 1e9))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        delay = _detail(status, error_details_pb2.RetryInfo).retry_delay
        return cls(status.message, retry_after_s=delay.ToNanoseconds() / 1e9)


class QuotaExceeded(Overloaded):
    """A limit of this tenant's own is used up."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, text: str, *, subject: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(text, retry_after_s=retry_after_s)
        self.subject = subject

    def details(self) -> list[message.Message]:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=self.subject, description=self.text
        )
        return [*super().details(), error_details_pb2.QuotaFailure(violations=[violation])]

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        error = super().from_status(status)
        for violation in _detail(status, error_details_pb2.QuotaFailure).violations:
            error.subject = violation.subject
        return error


class Unavailable(SidecacheError):
    """Nothing was sent yet; the same call may succeed at once or soon."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class NoHealthyWorker(Unavailable):
    """No worker that could serve this request is ready."""

    reason = "NO_HEALTHY_WORKER"


class Draining(Unavailable):
    """This server is about to end and takes nothing more; another one may serve the request."""

    reason = "DRAINING"


class EngineFailed(Unavailable):
    """The engine died or refused to work; another worker may serve the request."""

    reason = "ENGINE_FAILED"


class StreamInterrupted(SidecacheError):
    """Tokens were sent and the rest cannot be continued exactly."""

    code = grpc.StatusCode.ABORTED
    reason = "STREAM_INTERRUPTED"


class DeadlineExceeded(SidecacheError):
    """The caller's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(SidecacheError):
    """The caller gave up."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class Unsupported(SidecacheError):
    """Part of the contract that this release or this service does not serve."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNSUPPORTED"


class BrokenInvariant(SidecacheError):
    """A bug of ours."""

    code = grpc.StatusCode.INTERNAL
    reason = "BROKEN_INVARIANT"


class SetupError(SidecacheError):
    """A service cannot start: a bad setting, a missing file, a busy port, a full disk."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "SETUP"


def to_status(error: SidecacheError) -> status_pb2.Status:
    """The google.rpc.Status of an error: its code, text, ErrorInfo and details."""
    status = status_pb2.Status(code=error.code.value[0], message=error.text)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata=error.metadata()
    )
    for detail in (info, *error.details()):
        status.details.add().Pack(detail)
    return status


def _descendants(cls: type[SidecacheError]) -> Iterator[type[SidecacheError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _descendants(child)


_BY_REASON = {cls.reason: cls for cls in _descendants(SidecacheError)}
# The broadest class of each code; a child never replaces its parent.
_BY_CODE = {cls.code.value[0]: cls for cls in reversed(list(_descendants(SidecacheError)))}


def from_status(status: status_pb2.Status) -> SidecacheError:
    """The error that :func:`to_status` was given, as far as a status can tell.

    A status without our ErrorInfo (gRPC's own, or another server's) becomes the
    broadest class that stands for its code.
    """
    info = _detail(status, error_details_pb2.ErrorInfo)
    cls = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if cls is None:
        cls = _BY_CODE.get(status.code, SidecacheError)
    return cls.from_status(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> SidecacheError:
    """The error that a failed call stands for."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an aio error is a Call too
    if status is None:
        status = status_pb2.Status(
            code=error.code().value[0], message=error.details() or error.code().name
        )
    return from_status(status)
