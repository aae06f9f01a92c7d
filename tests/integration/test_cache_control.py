"""Cache control of a request, directive by directive, through real servers.

The table is in docs/cache-control.md; the meanings are RFC 9111's.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from sidecache.client import CacheControl, Completion, SidecacheClient, Source
from sidecache.errors import InvalidRequest, NotCached, NotFound
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cache import TurnedClock, seconds
from tests.fixtures.cached import if_cached, semantic_stack, until_cached
from tests.fixtures.stack import Stack, scripted_stack

NO_CACHE = CacheControl(mode=pb.CACHE_MODE_NO_CACHE)
QUESTION = "What is the capital of France?"
PARAPHRASE = "What's the capital city of France?"


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
async def stack(tmp_path: Path, clock: TurnedClock) -> AsyncIterator[Stack]:
    """With a sidecar whose time the test turns, exact tier only."""
    async with scripted_stack(tmp_path, cache={"clock": clock}) as stack:
        yield stack


async def settled(client: SidecacheClient) -> None:
    """Return once what was to be stored until now is: stores are kept in order."""
    await until_cached(client, "a marker", cache=CacheControl(namespace="marker"))
    await client.complete("another marker", max_tokens=2, cache=NO_CACHE)
    await until_cached(client, "another marker", max_tokens=2)


async def ask(client: SidecacheClient, **control: Any) -> Completion:
    return await client.complete("hello", max_tokens=8, cache=CacheControl(**control))


async def age_s(client: SidecacheClient, prompt: str = "hello", **control: Any) -> float:
    """The age that a hit reports."""
    options = {"max_tokens": 8, "cache": CacheControl(**control)}
    async with client.generate(prompt, **options) as stream:  # type: ignore[arg-type]
        await stream.complete()
    assert stream.started is not None
    assert Source(stream.started.source) is Source.EXACT
    return stream.started.cache_age.ToNanoseconds() / 1e9


async def test_no_store(stack: Stack) -> None:
    """The answer is not kept; one that is there is used all the same (RFC 9111, 5.2.1.5)."""
    assert (await ask(stack.client, no_store=True)).source is Source.ENGINE
    assert await if_cached(stack.client, "hello") is None
    await until_cached(stack.client, "hello")
    assert (await ask(stack.client, no_store=True)).source is Source.EXACT


async def test_no_cache_replaces_what_was_stored(stack: Stack, clock: TurnedClock) -> None:
    """The stored answer is not used, and the new one takes its place, age and id (5.2.1.4)."""
    old = await until_cached(stack.client, "hello")
    clock.now_s += 100
    assert await age_s(stack.client) == 100
    assert (await ask(stack.client, mode=pb.CACHE_MODE_NO_CACHE)).source is Source.ENGINE
    await settled(stack.client)
    new = await if_cached(stack.client, "hello")
    assert new is not None
    assert new.cache_entry_id != old.cache_entry_id
    assert await age_s(stack.client) == 0
    with pytest.raises(NotFound):
        await stack.client.report_wrong(old.cache_entry_id)


async def test_no_cache_with_no_store_leaves_the_stored_answer(stack: Stack) -> None:
    """Neither used nor replaced: the same as BYPASS."""
    old = await until_cached(stack.client, "hello")
    for control in (
        {"mode": pb.CACHE_MODE_NO_CACHE, "no_store": True},
        {"mode": pb.CACHE_MODE_BYPASS},
    ):
        assert (await ask(stack.client, **control)).source is Source.ENGINE
    await settled(stack.client)
    kept = await if_cached(stack.client, "hello")
    assert kept is not None
    assert kept.cache_entry_id == old.cache_entry_id


async def test_only_if_cached(stack: Stack) -> None:
    """A stored answer or NOT_FOUND (504 in HTTP); nothing is generated for it (5.2.1.7)."""
    with pytest.raises(NotCached):
        await ask(stack.client, mode=pb.CACHE_MODE_ONLY_IF_CACHED)
    assert stack.workers[0].engine.load_figures().running_sequences == 0
    await until_cached(stack.client, "hello")
    hit = await ask(stack.client, mode=pb.CACHE_MODE_ONLY_IF_CACHED)
    assert hit.source is Source.EXACT


async def test_max_age(stack: Stack, clock: TurnedClock) -> None:
    """An answer exactly that old is used, an older one is not, and is generated anew (5.2.1.1)."""
    await until_cached(stack.client, "hello")
    clock.now_s += 10
    assert await age_s(stack.client, max_age=seconds(10)) == 10
    clock.now_s += 0.5
    only = {"mode": pb.CACHE_MODE_ONLY_IF_CACHED, "max_age": seconds(10)}
    with pytest.raises(NotCached):
        await ask(stack.client, **only)
    assert (await ask(stack.client, max_age=seconds(10))).source is Source.ENGINE
    await settled(stack.client)
    assert await age_s(stack.client, max_age=seconds(10)) == 0


async def test_max_age_zero_is_no_cache(stack: Stack) -> None:
    """No stored answer is young enough, not even one of this very moment."""
    old = await until_cached(stack.client, "hello")
    assert (await ask(stack.client, max_age=seconds(0))).source is Source.ENGINE
    await settled(stack.client)
    new = await if_cached(stack.client, "hello")
    assert new is not None
    assert new.cache_entry_id != old.cache_entry_id


async def test_the_stricter_directive_holds(stack: Stack) -> None:
    """With NO_CACHE or BYPASS a max_age or min_similarity allows nothing back (4.2.1)."""
    await until_cached(stack.client, "hello")
    for mode in (pb.CACHE_MODE_NO_CACHE, pb.CACHE_MODE_BYPASS):
        answer = await ask(stack.client, mode=mode, max_age=seconds(1000), min_similarity=0.9)
        assert answer.source is Source.ENGINE


async def test_ttl(stack: Stack, clock: TurnedClock) -> None:
    """An answer dies at its ttl, however popular: no hit lengthens its life."""
    await until_cached(stack.client, "hello", cache=CacheControl(ttl=seconds(60)))
    for _ in range(59):
        clock.now_s += 1
        assert await if_cached(stack.client, "hello") is not None
    assert await age_s(stack.client) == 59
    clock.now_s += 1
    assert await if_cached(stack.client, "hello") is None


async def test_ttl_is_cut_to_the_operators_limit(tmp_path: Path, clock: TurnedClock) -> None:
    """A request may ask for a shorter life, or a longer one up to max_ttl_s."""
    cache = {"clock": clock, "max_ttl_s": 100.0, "default_ttl_s": 50.0}
    async with scripted_stack(tmp_path, cache=cache) as stack:
        await until_cached(stack.client, "long", cache=CacheControl(ttl=seconds(10_000)))
        await until_cached(stack.client, "default")
        clock.now_s += 50
        assert await if_cached(stack.client, "default") is None
        assert await if_cached(stack.client, "long") is not None
        clock.now_s += 50
        assert await if_cached(stack.client, "long") is None


async def test_tags_and_namespaces_name_what_is_removed_together(stack: Stack) -> None:
    """A tag takes its answers and no others; so does a namespace."""
    await until_cached(stack.client, "red", cache=CacheControl(tags=["doc-7", "hr"]))
    await until_cached(stack.client, "blue", cache=CacheControl(tags=["doc-8"]))
    await until_cached(stack.client, "green", cache=CacheControl(namespace="beta"))
    async with stack.connect("operator") as operator:
        for request in (
            admin_pb2.InvalidateCacheRequest(tenant="acme", tag="doc-7"),
            admin_pb2.InvalidateCacheRequest(tenant="acme", namespace="beta"),
        ):
            assert (await operator.invalidate_cache(request)).entries == 1
    assert await if_cached(stack.client, "red") is None
    assert await if_cached(stack.client, "blue") is not None
    assert await if_cached(stack.client, "green", cache=CacheControl(namespace="beta")) is None


@pytest.mark.parametrize("lowest", [0.0, 0.01, 0.5])
async def test_min_similarity_is_raised_and_never_lowered(
    tmp_path: Path, minilm_path: Path, lowest: float
) -> None:
    """A caller's floor counts only above the operator's; 0 is a value, not "unset"."""
    async with semantic_stack(tmp_path, minilm_path) as stack:
        await until_cached(stack.client, QUESTION)
        assert await if_cached(stack.client, PARAPHRASE) is not None
        low = CacheControl(min_similarity=lowest)
        for other in ("How do I bake bread?", "What is the capital of Spain?", "Is Paris nice?"):
            assert await if_cached(stack.client, other, cache=low) is None
        high = CacheControl(min_similarity=0.999)
        assert await if_cached(stack.client, PARAPHRASE, cache=high) is None
        assert await if_cached(stack.client, QUESTION, cache=CacheControl(min_similarity=1.0))


NEVER_STORED = "is not stored; drop one of them"
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "only-if-cached of no age": (
        {"mode": pb.CACHE_MODE_ONLY_IF_CACHED, "max_age": seconds(0)},
        "cache.mode",
        "cache.max_age is 0 s",
    ),
    "ttl without store": ({"no_store": True, "ttl": seconds(5)}, "cache.ttl", "no_store"),
    "tags without store": ({"no_store": True, "tags": ["a"]}, "cache.tags", "no_store"),
    "ttl of a bypass": (
        {"mode": pb.CACHE_MODE_BYPASS, "ttl": seconds(5)},
        "cache.ttl",
        "mode BYPASS",
    ),
    "tags of only-if-cached": (
        {"mode": pb.CACHE_MODE_ONLY_IF_CACHED, "tags": ["a"]},
        "cache.tags",
        "mode ONLY_IF_CACHED",
    ),
    "no life": ({"ttl": seconds(0)}, "cache.ttl", "must be above 0"),
    "an empty tag": ({"tags": ["a", ""]}, "cache.tags", "at least one character"),
    "no duration": (
        {"max_age": duration_pb2.Duration(seconds=1, nanos=-1)},
        "cache.max_age",
        "is no duration",
    ),
    "eternity": (
        {"ttl": duration_pb2.Duration(seconds=2**62)},
        "cache.ttl",
        "is no duration",
    ),
}


async def test_contradictions_are_refused_and_named(stack: Stack) -> None:
    """What nothing can satisfy is INVALID_ARGUMENT that names both; no cache state changes."""
    for case, (control, field, word) in CONTRADICTIONS.items():
        with pytest.raises(InvalidRequest) as refused:
            await ask(stack.client, **control)
        assert refused.value.field == field, case
        assert word in refused.value.problem, case
    assert await if_cached(stack.client, "hello") is None
    assert (await ask(stack.client)).source is Source.ENGINE
