"""From messages to the cache's nouns, every field checked, and back."""

import math
from functools import lru_cache
from typing import TypeVar

from google.protobuf import duration_pb2

from cache_svc.entry import Key, Query
from cache_svc.lookup import Hit, Miss, MissReason, Tier
from sidecache.errors import InvalidRequest
from sidecache.v1 import cache_pb2

MAX_NAME_BYTES = 256
DIGEST_BYTES = 32
_MAX_SECONDS = 315_576_000_000  # 10,000 years: protobuf's own limit
_NANOS = 1_000_000_000

_TIERS = {Tier.EXACT: cache_pb2.TIER_EXACT, Tier.SEMANTIC: cache_pb2.TIER_SEMANTIC}
_MISS_REASONS = {
    MissReason.ABSENT: cache_pb2.MISS_REASON_ABSENT,
    MissReason.BELOW_THRESHOLD: cache_pb2.MISS_REASON_BELOW_THRESHOLD,
    MissReason.REJECTED: cache_pb2.MISS_REASON_REJECTED,
    MissReason.STALE: cache_pb2.MISS_REASON_STALE,
    MissReason.NOT_COMPARABLE: cache_pb2.MISS_REASON_NOT_COMPARABLE,
    MissReason.DEGRADED: cache_pb2.MISS_REASON_DEGRADED,
    MissReason.EXPLORED: cache_pb2.MISS_REASON_EXPLORED,
}


def read_query(request: cache_pb2.LookupRequest | cache_pb2.ExplainRequest) -> Query:
    """The query of a lookup.

    Raises:
        InvalidRequest: naming the field that has a value it may not have.
    """
    max_age_s = None
    if request.HasField("max_age"):
        max_age_s = read_duration(request.max_age, "max_age")
        if max_age_s < 0:
            raise InvalidRequest(f"is {max_age_s:g} s, must be at least 0", field="max_age")
    min_similarity = None
    if request.HasField("min_similarity"):
        min_similarity = request.min_similarity
        if not -1 <= min_similarity <= 1:  # written so that NaN is refused too
            raise InvalidRequest(
                f"is {min_similarity:g}, must be a cosine in [-1, 1]", field="min_similarity"
            )
    return Query(read_key(request.key), max_age_s, min_similarity)


def read_key(key: cache_pb2.CacheKey) -> Key:
    """The key of a lookup or an entry.

    Raises:
        InvalidRequest: naming the field that has a value it may not have.
    """
    tenant, scope, exact = key.tenant, key.scope, key.exact
    check_name(tenant, "key.tenant")
    check_name(key.model, "key.model")
    check_name(key.namespace, "key.namespace", may_be_empty=True)
    if len(scope) != DIGEST_BYTES:
        raise InvalidRequest(f"has {len(scope)} bytes, must have 32", field="key.scope")
    if len(exact) != DIGEST_BYTES:
        raise InvalidRequest(f"has {len(exact)} bytes, must have 32", field="key.exact")
    names = (_shared(tenant), _shared(key.namespace), _shared(key.model))
    return Key(*names, _shared(scope), exact, key.semantic_text)


_Name = TypeVar("_Name", str, bytes)


@lru_cache(maxsize=4096)
def _shared(name: _Name) -> _Name:
    """The same name as one object, however many messages it came in."""
    return name


def check_name(name: str, field: str, *, may_be_empty: bool = False) -> None:
    """Refuse a name that is empty or too long."""
    if not name and not may_be_empty:
        raise InvalidRequest("must not be empty", field=field)
    if len(name) > MAX_NAME_BYTES or (not name.isascii() and len(name.encode()) > MAX_NAME_BYTES):
        raise InvalidRequest(
            f"has {len(name.encode())} bytes, may have {MAX_NAME_BYTES}", field=field
        )


def read_duration(duration: duration_pb2.Duration, field: str) -> float:
    """Seconds of a well-formed duration."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise InvalidRequest(f"is no duration: {seconds} s and {nanos} ns", field=field)
    return seconds + nanos / _NANOS


def write_duration(seconds: float) -> duration_pb2.Duration:
    """A duration message of a time that is not negative."""
    fraction, whole = math.modf(seconds)
    return duration_pb2.Duration(seconds=int(whole), nanos=int(fraction * _NANOS))


def write_outcome(outcome: Hit | Miss) -> cache_pb2.LookupResponse:
    """The response to a lookup."""
    if isinstance(outcome, Miss):
        reason = _MISS_REASONS[outcome.reason]
        explored = "" if outcome.explored is None else outcome.explored.name
        miss = cache_pb2.CacheMiss(reason=reason, explored_entry_id=explored)
        return cache_pb2.LookupResponse(miss=miss)
    response = cache_pb2.LookupResponse()
    hit = response.hit
    hit.tier = _TIERS[outcome.tier]
    hit.entry_id = outcome.entry.name
    hit.audit = outcome.audit
    hit.age.CopyFrom(write_duration(outcome.age_s))
    hit.answer.MergeFromString(outcome.entry.answer)
    return response
