"""The operator's tools: explain, invalidate and statistics, as RPC and as commands."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cache_svc.settings import SemanticSettings
from sidecache.cli.cache_explain import _MISSES
from sidecache.client import CacheControl, ChatMessage, Source
from sidecache.errors import Forbidden, InvalidRequest, ModelNotFound, Unavailable
from sidecache.v1 import admin_pb2, cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cached import if_cached, semantic_stack, until_cached
from tests.fixtures.stack import KEYS, Stack, scripted_stack

QUESTION = "What is the capital of France?"
PARAPHRASE = "What's the capital city of France?"
TRAP = "What is not the capital of France?"
Invalidate = admin_pb2.InvalidateCacheRequest


@pytest.fixture
async def stack(tmp_path: Path, minilm_path: Path) -> AsyncIterator[Stack]:
    async with semantic_stack(tmp_path, minilm_path) as stack:
        yield stack


async def test_explain_says_what_a_request_would_meet(stack: Stack) -> None:
    """Tier, neighbour, verdict and floor are those of the real request; nothing is counted."""
    async with stack.connect("operator") as operator:

        async def explain(prompt: str, **options: Any) -> admin_pb2.ExplainCacheResponse:
            return await operator.explain_cache(prompt, tenant="acme", **options)

        before = await explain(QUESTION)
        assert before.explained.outcome.miss.reason == cache_pb2.MISS_REASON_ABSENT
        # max_tokens is the router's default in both.
        stored = await until_cached(stack.client, QUESTION, max_tokens=None)
        hits = (await operator.cache_stats()).stats.lookups
        exact = await explain(QUESTION)
        assert exact.key == before.key
        assert exact.explained.outcome.hit.tier == cache_pb2.TIER_EXACT
        assert exact.explained.outcome.hit.entry_id == stored.cache_entry_id
        assert not exact.explained.outcome.hit.HasField("answer")
        similar = await explain(PARAPHRASE)
        assert similar.explained.outcome.hit.tier == cache_pb2.TIER_SEMANTIC
        assert similar.key.scope == exact.key.scope
        assert similar.explained.threshold == pytest.approx(SemanticSettings().min_similarity)
        trap = await explain(TRAP)
        assert trap.explained.outcome.miss.reason == cache_pb2.MISS_REASON_REJECTED
        (candidate,) = trap.explained.candidates
        assert candidate.entry_id == stored.cache_entry_id
        assert candidate.verdict.startswith("verifier: ")
        other = await explain(QUESTION, max_tokens=3)
        assert other.key.scope != exact.key.scope
        assert (await operator.explain_cache(QUESTION)).tenant == "operator"
        assert (await operator.cache_stats()).stats.lookups == hits
        # The tenant meets what was explained.
        hit = await if_cached(stack.client, PARAPHRASE, max_tokens=None)
        assert hit is not None
        assert (hit.source, hit.cache_entry_id) == (Source.SEMANTIC, stored.cache_entry_id)


def test_every_miss_has_its_words() -> None:
    """No reason that a sidecar gives is shown to people by its number or its constant."""
    reasons = set(cache_pb2.MissReason.values()) - {cache_pb2.MISS_REASON_UNSPECIFIED}
    assert reasons == set(_MISSES)


async def test_explain_says_why_the_cache_is_not_asked(stack: Stack) -> None:
    """Mode, sampling, a raw completion and a leaning turn: each is told in words."""
    history = [
        ChatMessage(role="user", content="What is the dose of aspirin?"),
        ChatMessage(role="assistant", content="500 mg."),
        ChatMessage(role="user", content="And for children?"),
    ]
    async with stack.connect("operator") as operator:
        bypass = await operator.explain_cache(
            QUESTION, cache=CacheControl(mode=pb.CACHE_MODE_BYPASS)
        )
        assert bypass.not_asked == bypass.not_stored == "cache.mode is BYPASS"
        assert not bypass.HasField("key")
        assert not bypass.HasField("explained")
        no_store = await operator.explain_cache(QUESTION, cache=CacheControl(no_store=True))
        assert (no_store.not_asked, no_store.not_stored) == ("", "cache.no_store is set")
        dice = await operator.explain_cache(QUESTION, temperature=1.0)
        assert "set a seed" in dice.not_asked
        leaning = await operator.explain_cache(history)
        assert "too few words" in leaning.not_compared
        assert leaning.key.semantic_text == ""
        raw = await operator.explain_cache(text="Once upon a time")
        assert "not a chat" in raw.not_compared
        assert raw.explained.outcome.miss.reason == cache_pb2.MISS_REASON_NOT_COMPARABLE
        with pytest.raises(ModelNotFound):
            await operator.explain_cache(QUESTION, model="none")
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await operator.explain_cache(QUESTION, max_tokens=0)


async def test_invalidate(stack: Stack) -> None:
    """By entry, tag, model, namespace or all, of one tenant; a dry run removes nothing."""
    async with stack.connect("operator") as operator, stack.connect("umbrella") as other:
        for n, control in enumerate((CacheControl(tags=["a"]), CacheControl(namespace="n"))):
            await until_cached(stack.client, f"question {n}", cache=control)
        entry = (await until_cached(stack.client, "question 2")).cache_entry_id
        await until_cached(stack.client, "question 3")
        await until_cached(other, "question 3", cache=CacheControl(tags=["a"]))

        async def count(*, tenant: str = "acme", dry_run: bool = True, **criteria: Any) -> int:
            request = Invalidate(tenant=tenant, dry_run=dry_run, **criteria)
            return (await operator.invalidate_cache(request)).entries

        assert [await count(tag="a"), await count(namespace="n"), await count(namespace="")] == [
            1,
            1,
            3,
        ]
        assert [await count(model="scripted"), await count(model="other")] == [4, 0]
        assert [await count(entry_id=entry), await count(entry_id=entry, tag="a")] == [1, 0]
        assert await count(entry_id=entry, tenant="umbrella") == 0
        assert await count(all=True) == 4
        with pytest.raises(InvalidRequest, match="all"):
            await count()
        assert await count(entry_id=entry, dry_run=False) == 1
        assert await if_cached(stack.client, "question 2") is None
        assert await count(all=True, dry_run=False) == 3
        assert await if_cached(stack.client, "question 3") is None
        assert await if_cached(other, "question 3") is not None


async def test_ordinary_keys_neither_see_nor_purge(stack: Stack) -> None:
    """Scores, keys, statistics and purging are the operator's."""
    for call in (
        stack.client.explain_cache(QUESTION),
        stack.client.explain_cache(QUESTION, tenant="umbrella"),
        stack.client.invalidate_cache(Invalidate(all=True)),
        stack.client.cache_stats(),
    ):
        with pytest.raises(Forbidden):
            await call


async def test_a_dead_sidecar_is_told(tmp_path: Path) -> None:
    """Requests go on without a sidecar; an operator is told that nobody answers."""
    dead = {"cache": f"unix:{tmp_path}/nobody.sock"}
    async with (
        scripted_stack(tmp_path, with_cache=False, router_=dead) as stack,
        stack.connect("operator") as operator,
    ):
        for call in (
            operator.explain_cache(QUESTION),
            operator.invalidate_cache(Invalidate(all=True)),
        ):
            with pytest.raises(Unavailable, match="cache sidecar does not answer"):
                await call
        assert not (await operator.cache_stats()).reachable


async def command(stack: Stack, *arguments: str, stdin: int | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sidecache cache …` with the operator's key."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecache", "cache", *arguments, "-a", stack.router.address),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"SIDECACHE_API_KEY": KEYS["operator"], "COLUMNS": "120"},
    )
    async with asyncio.timeout(30):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def test_the_commands(stack: Stack) -> None:
    """For people a table that says what decided, for programs JSON; the same facts in both."""
    stored = await until_cached(stack.client, QUESTION, max_tokens=None)
    (_, hit, _), (_, miss, _), (_, as_json, _), (_, stats, _) = await asyncio.gather(
        command(stack, "explain", PARAPHRASE, "--tenant", "acme"),
        command(stack, "explain", TRAP, "--tenant", "acme"),
        command(stack, "explain", PARAPHRASE, "--tenant", "acme", "--json"),
        command(stack, "stats", "--json"),
    )
    assert f"semantic hit on {stored.cache_entry_id}" in hit
    assert "served" in hit
    assert "a near answer is for another meaning" in miss
    assert "refused" in miss
    assert "verifier: " in miss
    explained = json.loads(as_json)
    assert explained["explained"]["outcome"]["hit"]["entryId"] == stored.cache_entry_id
    assert json.loads(stats)["stats"]["entries"] == "1"


async def test_explain_reads_a_whole_request(stack: Stack, tmp_path: Path) -> None:
    """A conversation comes as JSON; what is no request is named in one line."""
    request, bad = tmp_path / "request.json", tmp_path / "bad.json"
    turns = [("user", "Aspirin?"), ("assistant", "500 mg."), ("user", "And for children?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    request.write_text(json.dumps({"chat": {"messages": messages}}))
    bad.write_text('{"chat": 7}')
    (code, said, _), (wrong, _, complaint), (both, _, _) = await asyncio.gather(
        command(stack, "explain", "--request", str(request)),
        command(stack, "explain", "--request", str(bad)),
        command(stack, "explain", "hello", "--request", str(request)),
    )
    assert (code, wrong, both) == (0, 2, 2)
    assert "the last turn leans on those before it: too few words" in said
    assert "is no GenerateRequest" in complaint


async def test_purge_asks_first(stack: Stack) -> None:
    """Without a terminal it needs --yes; at one it says how many will go, and takes no for no."""
    for n in range(2):
        await until_cached(stack.client, f"question {n}", cache=CacheControl(tags=["t"]))
    purge = ("purge", "--tenant", "acme", "--tag", "t")
    assert await command(stack, *purge, "--dry-run") == (
        0,
        "2 answers of tenant acme would be removed\n",
        "",
    )
    code, _, complaint = await command(stack, *purge)
    assert code == 2
    assert "--yes" in complaint
    for reply, expected in ((b"n\n", 1), (b"y\n", 0)):
        terminal, stdin = os.openpty()
        os.write(terminal, reply)
        code, said, asked = await command(stack, *purge, stdin=stdin)
        os.close(terminal)
        os.close(stdin)
        assert code == expected
        assert "2 answers of tenant acme will be removed." in asked
    assert said == "2 answers of tenant acme removed\n"
    code, said, _ = await command(stack, "purge", "--all", "--yes", "--json")
    assert (code, json.loads(said)) == (0, {"tenant": "operator", "entries": "0"})
    code, _, complaint = await command(stack, "purge", "--all", "--tag", "t", "--yes")
    assert (code, "--all removes everything" in complaint) == (2, True)
