"""A tenant reports a wrong answer: it is out at once, for good, and only if it is his."""

from pathlib import Path

import pytest

from sidecache.client import SidecacheClient, Source
from sidecache.errors import NotFound, Unavailable, Unsupported
from tests.fixtures.cached import if_cached, semantic_stack, until_cached
from tests.fixtures.stack import scripted_stack

QUESTION = "What is the capital of France?"
PARAPHRASE = "What's the capital city of France?"


async def test_the_very_next_lookup_misses(tmp_path: Path, minilm_path: Path) -> None:
    """Reported once, the entry serves nobody, and its request serves no look-alike again."""
    async with semantic_stack(tmp_path, minilm_path) as stack:
        await until_cached(stack.client, QUESTION)
        wrong = await if_cached(stack.client, PARAPHRASE)
        assert wrong is not None
        assert wrong.source is Source.SEMANTIC
        await stack.client.report_wrong(wrong.cache_entry_id)
        assert await if_cached(stack.client, PARAPHRASE) is None
        assert await if_cached(stack.client, QUESTION) is None
        # Asked again, the request is answered from its own words and nobody else's.
        assert (await until_cached(stack.client, QUESTION)).source is Source.EXACT
        assert await if_cached(stack.client, PARAPHRASE) is None


async def test_another_tenants_entry_is_not_found(tmp_path: Path) -> None:
    """Another's entry, one that never was and no id at all: the same NOT_FOUND; it stays."""
    async with scripted_stack(tmp_path) as stack, stack.connect("umbrella") as other:
        own = await until_cached(stack.client, "hello")
        told: list[str] = []
        for name in (own.cache_entry_id, "0123456789abcdef", "no id", ""):
            with pytest.raises(NotFound) as refused:
                await other.report_wrong(name)
            assert (refused.value.kind, refused.value.name) == ("cache entry", name)
            told.append(refused.value.text.replace(repr(name), "…"))
        assert len(set(told)) == 1
        assert await if_cached(stack.client, "hello") is not None
        await stack.client.report_wrong(own.cache_entry_id)
        with pytest.raises(NotFound):
            await stack.client.report_wrong(own.cache_entry_id)


async def test_without_a_cache_it_is_said(tmp_path: Path) -> None:
    """No sidecar, a dead sidecar, a worker: each says so, and none pretends."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        with pytest.raises(Unsupported, match="without a cache"):
            await stack.client.report_wrong("0123456789abcdef")
        async with SidecacheClient(stack.workers[0].server.address) as worker:
            with pytest.raises(Unsupported, match="keeps no answers"):
                await worker.report_wrong("0123456789abcdef")
    dead = {"cache": f"unix:{tmp_path}/nobody.sock", "lookup": {"operator_timeout_s": 2.0}}
    async with scripted_stack(tmp_path, with_cache=False, router_=dead) as stack:
        with pytest.raises(Unavailable, match="cache sidecar does not answer"):
            await stack.client.report_wrong("0123456789abcdef")
