"""The error tree and its mapping to gRPC status."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sidecache import errors
from sidecache.errors import SidecacheError, from_status, to_status

EXAMPLES: list[SidecacheError] = [
    errors.InvalidRequest("-1; may be 1 to 8", field="n"),
    errors.PromptTooLong("9000 tokens; the context holds 8192", field="prompt"),
    errors.Unauthenticated("unknown API key"),
    errors.Forbidden("needs an admin key"),
    errors.NotFound("no worker 'w9'", kind="worker", name="w9"),
    errors.ModelNotFound("model 'x' is not served", kind="model", name="x"),
    errors.NotCached("no stored answer"),
    errors.Overloaded("full", retry_after_s=0.25),
    errors.QuotaExceeded("too many", subject="tenant:acme", retry_after_s=1.5),
    errors.Unavailable("later"),
    errors.NoHealthyWorker("none is ready"),
    errors.EngineFailed("out of memory"),
    errors.Draining("this server drains"),
    errors.StreamInterrupted("cut off"),
    errors.StreamInterrupted("lost after 7 tokens", why="sampled", offset=7),
    errors.DeadlineExceeded("too late"),
    errors.Cancelled("gone"),
    errors.Unsupported("not in this release"),
    errors.BrokenInvariant("offset 3 after 1"),
    errors.SetupError("no such file"),
    errors.Quarantined("3 workers were lost", retry_after_s=12.5),
]


def _tree(cls: type[SidecacheError]) -> set[type[SidecacheError]]:
    """The classes of the tree itself; rooms have subclasses of their own that stay inside."""
    found = {cls}.union(*(_tree(child) for child in cls.__subclasses__()))
    return {each for each in found if each.__module__ == errors.__name__}


def test_every_error_is_among_the_examples() -> None:
    """A new class cannot be forgotten by the round trip below."""
    assert {type(e) for e in EXAMPLES} == _tree(SidecacheError) - {SidecacheError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_survives_the_wire(error: SidecacheError) -> None:
    """What the server raised is what the client catches, with all its facts."""
    wire = to_status(error).SerializeToString()
    back = from_status(status_pb2.Status.FromString(wire))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_reasons_are_unique() -> None:
    """A reason names one class, or a client could not tell them apart."""
    reasons = [cls.reason for cls in _tree(SidecacheError)]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_foreign_status_becomes_the_class_of_its_code(code: grpc.StatusCode) -> None:
    """gRPC's own refusals, which carry no ErrorInfo, map to the broadest class of their code."""
    error = from_status(status_pb2.Status(code=code.value[0], message="said by gRPC"))
    assert str(error) == "said by gRPC"
    expected = {cls.code for cls in _tree(SidecacheError)}
    assert error.code is code if code in expected else type(error) is SidecacheError
    if code is grpc.StatusCode.UNAVAILABLE:
        assert type(error) is errors.Unavailable


def test_foreign_error_info_is_not_taken_for_ours() -> None:
    """A reason of another domain does not choose our class."""
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="elsewhere")
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="another")
    )
    assert type(from_status(status)) is errors.NotFound


def test_an_invalid_request_names_its_field() -> None:
    """BadRequest tells a machine which field to mend."""
    status = to_status(errors.InvalidRequest("0; may be 1 to 8", field="n"))
    packed = error_details_pb2.BadRequest()
    assert any(detail.Unpack(packed) for detail in status.details)
    assert packed.field_violations[0].field == "n"
    assert packed.field_violations[0].description == "0; may be 1 to 8"
    assert status.message == "n: 0; may be 1 to 8"
