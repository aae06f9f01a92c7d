"""Cache control: what a request allows the cache, in the meanings of RFC 9111.

docs/cache-control.md has the table. Where two directives differ only in how much
they allow, the stricter one holds (RFC 9111, section 4.2.1): ``NO_CACHE`` with a
``max_age`` is ``NO_CACHE``. Where nothing can satisfy both, the request is
refused and both are named.
"""

from google.protobuf import duration_pb2

from router.settings import LimitSettings
from sidecache.errors import InvalidRequest
from sidecache.key import is_repeatable
from sidecache.v1 import inference_pb2 as pb

_LOOKS_UP = frozenset(
    (pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_DEFAULT, pb.CACHE_MODE_ONLY_IF_CACHED)
)
_STORES = frozenset((pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_DEFAULT, pb.CACHE_MODE_NO_CACHE))
_MODES = frozenset(pb.CacheMode.values())
# 10,000 years: protobuf's own limit of a Duration.
_MAX_SECONDS = 315_576_000_000
_NANOS = 1_000_000_000


def why_not_looked_up(request: pb.GenerateRequest) -> str:
    """Why a request does not ask the cache, or "" when it does."""
    cache = request.cache
    if cache.mode not in _LOOKS_UP:
        return f"cache.mode is {_mode_name(cache)}"
    if cache.HasField("max_age") and not cache.max_age.ToNanoseconds():
        return "cache.max_age is 0 s"
    return _why_not_cacheable(request)


def why_not_stored(request: pb.GenerateRequest) -> str:
    """Why a request's answer is not stored, or "" when a whole one is."""
    cache = request.cache
    if cache.mode not in _STORES:
        return f"cache.mode is {_mode_name(cache)}"
    if cache.no_store:
        return "cache.no_store is set"
    return _why_not_cacheable(request)


def check_cache_control(request: pb.GenerateRequest, limits: LimitSettings) -> None:
    """Check a request's cache control.

    Raises:
        InvalidRequest: naming the directive that is out of its range, or the two
            that contradict each other.
    """
    cache = request.cache
    if cache.mode not in _MODES:
        raise InvalidRequest(f"{cache.mode} is no CacheMode", field="cache.mode")
    if cache.HasField("min_similarity") and not 0 <= cache.min_similarity <= 1:
        raise InvalidRequest(
            f"{cache.min_similarity:g}; may be 0 to 1", field="cache.min_similarity"
        )
    for name in ("max_age", "ttl"):
        if cache.HasField(name):
            check_duration(getattr(cache, name), f"cache.{name}")
    if cache.HasField("ttl") and not cache.ttl.ToNanoseconds():
        raise InvalidRequest("0 s; must be above 0, and no_store keeps nothing", field="cache.ttl")
    _check_names(cache, limits)
    _check_contradictions(request)


def _check_contradictions(request: pb.GenerateRequest) -> None:
    cache = request.cache
    how_to_store = [name for name in ("ttl", "tags") if _is_set(cache, name)]
    if how_to_store and (cache.no_store or cache.mode not in _STORES):
        never = "no_store" if cache.no_store else f"mode {_mode_name(cache)}"
        raise InvalidRequest(
            f"says how to store the answer, and {never} that it is not stored; drop one of them",
            field=f"cache.{how_to_store[0]}",
        )
    if cache.mode == pb.CACHE_MODE_ONLY_IF_CACHED and (why := why_not_looked_up(request)):
        raise InvalidRequest(
            f"ONLY_IF_CACHED asks for a stored answer, and none may be used: {why}",
            field="cache.mode",
        )


def check_duration(duration: duration_pb2.Duration, field: str) -> None:
    """Refuse what is no duration of 0 s or more."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise InvalidRequest(f"is no duration: {seconds} s and {nanos} ns", field=field)
    if seconds < 0 or nanos < 0:
        raise InvalidRequest("negative; may be 0 s or more", field=field)


def _check_names(cache: pb.CacheControl, limits: LimitSettings) -> None:
    if len(cache.tags) > limits.max_tags:
        raise InvalidRequest(
            f"{len(cache.tags)} tags; at most {limits.max_tags}", field="cache.tags"
        )
    for field, value in (("namespace", cache.namespace), *(("tags", tag) for tag in cache.tags)):
        if len(value.encode()) > limits.max_name_bytes:
            raise InvalidRequest(
                f"{len(value.encode())} bytes; at most {limits.max_name_bytes}",
                field=f"cache.{field}",
            )
    if "" in cache.tags:
        raise InvalidRequest("empty; a tag needs at least one character", field="cache.tags")


def _why_not_cacheable(request: pb.GenerateRequest) -> str:
    if is_repeatable(request) or request.cache.allow_sampled:
        return ""
    return "an unseeded sampled request is never cached; set a seed or allow_sampled"


def _is_set(cache: pb.CacheControl, name: str) -> bool:
    return bool(cache.tags) if name == "tags" else cache.HasField(name)  # type: ignore[arg-type]


def _mode_name(cache: pb.CacheControl) -> str:
    return pb.CacheMode.Name(cache.mode).removeprefix("CACHE_MODE_")
