"""Bad fields are refused by name."""

import math

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from cache_svc.wire import read_duration, read_query, write_duration
from sidecache.errors import InvalidRequest
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import wire_key


def _query(**fields: object) -> cache_pb2.LookupRequest:
    key = wire_key("text")
    for name in ("tenant", "namespace", "model", "scope", "exact"):
        if name in fields:
            setattr(key, name, fields.pop(name))
    return cache_pb2.LookupRequest(key=key, **fields)  # type: ignore[arg-type]  # a test's own


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (cache_pb2.LookupRequest(), "key.tenant"),
        (_query(tenant=""), "key.tenant"),
        (_query(tenant="x" * 257), "key.tenant"),
        (_query(tenant="é" * 129), "key.tenant"),
        (_query(model=""), "key.model"),
        (_query(namespace="n" * 300), "key.namespace"),
        (_query(scope=b""), "key.scope"),
        (_query(scope=b"x" * 31), "key.scope"),
        (_query(exact=b"x" * 33), "key.exact"),
        (_query(min_similarity=math.nan), "min_similarity"),
        (_query(min_similarity=1.5), "min_similarity"),
        (_query(min_similarity=-math.inf), "min_similarity"),
        (_query(max_age=duration_pb2.Duration(seconds=-1)), "max_age"),
        (_query(max_age=duration_pb2.Duration(seconds=1, nanos=-1)), "max_age"),
        (_query(max_age=duration_pb2.Duration(nanos=2_000_000_000)), "max_age"),
        (_query(max_age=duration_pb2.Duration(seconds=1 << 60)), "max_age"),
    ],
)
def test_bad_fields_are_named(request_: cache_pb2.LookupRequest, field: str) -> None:
    """Every malformed field is refused with its own name."""
    with pytest.raises(InvalidRequest) as raised:
        read_query(request_)
    assert raised.value.field == field


def test_unset_differs_from_zero() -> None:
    """A max age or similarity of zero is a wish; an unset one is none."""
    unset = read_query(_query())
    assert (unset.max_age_s, unset.min_similarity) == (None, None)
    zero = read_query(_query(max_age=duration_pb2.Duration(), min_similarity=0.0))
    assert (zero.max_age_s, zero.min_similarity) == (0.0, 0.0)


@given(st.floats(0, 1e9, allow_nan=False))
def test_durations_survive(value: float) -> None:
    """Seconds come back as they were, to a nanosecond."""
    assert read_duration(write_duration(value), "f") == pytest.approx(value, abs=1e-6)
