"""Two tenants, every route, any order: none meets the other's answer, and each meets his own."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecache.client import CacheControl, SidecacheClient, Source
from sidecache.errors import NotCached, NotFound
from sidecache.v1 import admin_pb2, cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cache import Sidecar, open_sidecar, text_of
from tests.fixtures.cached import semantic_stack
from tests.fixtures.stack import Stack

TENANTS = ("acme", "umbrella")
# Two questions that are one in meaning, and two that are not.
PROMPTS = (
    "What is the capital of France?",
    "What's the capital city of France?",
    "What is not the capital of France?",
    "How do I bake bread?",
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("store", "store", "lookup", "explain", "feedback", "invalidate")),
        st.sampled_from(TENANTS),
        st.sampled_from(PROMPTS),
        # Whose entry a feedback or an invalidation names.
        st.sampled_from(TENANTS),
    ),
    min_size=5,
    max_size=25,
)
_SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class Ledger:
    """What the sidecar must hold: each tenant's prompts, and the entries that answer them."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.entries: dict[tuple[str, str], str] = {}

    async def step(self, verb: str, tenant: str, prompt: str, named: str) -> None:
        entry = next((e for (owner, _), e in self.entries.items() if owner == named), "0" * 16)
        match verb:
            case "store":
                stored = await self.sidecar.store(prompt, f"{tenant}: {prompt}", tenant=tenant)
                self.entries[tenant, prompt] = stored.entry_id
            case "lookup":
                self._check(tenant, prompt, await self.sidecar.lookup(prompt, tenant=tenant))
            case "explain":
                explained = await self.sidecar.explain(prompt, tenant=tenant)
                self._check(tenant, prompt, explained.outcome)
                met = {candidate.entry_id for candidate in explained.candidates}
                assert met <= self._of(tenant)
            case "feedback":
                report = cache_pb2.FeedbackRequest(tenant=tenant, entry_id=entry, wrong=True)
                quarantined = (await self.sidecar.stub.Feedback(report)).quarantined
                assert quarantined is (entry in self._of(tenant))
                self._forget(tenant, entry)
            case "invalidate":
                request = cache_pb2.InvalidateRequest(tenant=tenant, entry_id=entry)
                removed = (await self.sidecar.stub.Invalidate(request)).entries
                assert removed == (entry in self._of(tenant))
                self._forget(tenant, entry)

    async def clear(self) -> None:
        for tenant in TENANTS:
            request = cache_pb2.InvalidateRequest(tenant=tenant, all=True)
            removed = (await self.sidecar.stub.Invalidate(request)).entries
            assert removed == len(self._of(tenant))
        self.entries.clear()

    def _check(self, tenant: str, prompt: str, found: cache_pb2.LookupResponse) -> None:
        if (tenant, prompt) in self.entries:
            assert found.hit.tier == cache_pb2.TIER_EXACT
            assert text_of(found.hit.answer) == f"{tenant}: {prompt}"
        if found.HasField("hit"):
            assert found.hit.entry_id in self._of(tenant)
            assert text_of(found.hit.answer).startswith(f"{tenant}: ")

    def _of(self, tenant: str) -> set[str]:
        return {entry for (owner, _), entry in self.entries.items() if owner == tenant}

    def _forget(self, tenant: str, entry: str) -> None:
        self.entries = {
            key: kept for key, kept in self.entries.items() if key[0] != tenant or kept != entry
        }


def test_any_order_of_calls_at_the_sidecar(tmp_path: Path, minilm_path: Path) -> None:
    """Stores, lookups, explanations, reports and removals of two tenants never touch."""
    with asyncio.Runner() as loop:
        semantic = {"embedder_path": minilm_path, "budget_s": 30}
        running = open_sidecar(tmp_path, semantic=semantic)
        ledger = Ledger(loop.run(running.__aenter__()))
        try:

            @settings(max_examples=60, **_SETTINGS)  # type: ignore[arg-type]
            @given(STEPS)
            def check(steps: list[tuple[str, str, str, str]]) -> None:
                loop.run(ledger.clear())
                for step in steps:
                    loop.run(ledger.step(*step))

            check()
        finally:
            loop.run(running.__aexit__(None, None, None))


class Callers:
    """Two tenants and an operator at a router; each entry id belongs to who met it first."""

    def __init__(self, stack: Stack, clients: dict[str, SidecacheClient]) -> None:
        self.stack = stack
        self.clients = clients
        self.owners: dict[str, str] = {}
        self.hits: set[tuple[str, Source]] = set()

    async def step(self, verb: str, tenant: str, prompt: str, named: str) -> None:
        client, operator = self.clients[tenant], self.clients["operator"]
        entry = next((e for e, owner in self.owners.items() if owner == named), "0" * 16)
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "store": lambda: client.complete(prompt, max_tokens=4),
            "lookup": lambda: client.complete(
                prompt, max_tokens=4, cache=CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
            ),
            "explain": lambda: operator.explain_cache(prompt, tenant=tenant, max_tokens=4),
            "feedback": lambda: client.report_wrong(entry),
            "invalidate": lambda: operator.invalidate_cache(
                admin_pb2.InvalidateCacheRequest(tenant=tenant, entry_id=entry)
            ),
        }
        try:
            done = await steps[verb]()
        except (NotCached, NotFound):
            return
        if verb in {"store", "lookup"} and done.cache_entry_id:
            self._met(tenant, done.cache_entry_id)
            self.hits.add((tenant, done.source))
        if verb == "explain":
            for candidate in done.explained.candidates:
                self._met(tenant, candidate.entry_id)
        if verb in {"feedback", "invalidate"} and entry in self.owners:
            assert verb == "invalidate" or self.owners[entry] == tenant
            assert verb == "feedback" or bool(done.entries) <= (self.owners[entry] == tenant)

    def _met(self, tenant: str, entry: str) -> None:
        assert self.owners.setdefault(entry, tenant) == tenant


def test_any_order_of_calls_at_the_router(tmp_path: Path, minilm_path: Path) -> None:
    """Credentials decide whose answers one meets, over every method; and hits do happen."""
    with asyncio.Runner() as loop:
        running = semantic_stack(tmp_path, minilm_path)
        stack = loop.run(running.__aenter__())
        clients = {name: stack.connect(name) for name in (*TENANTS, "operator")}
        for client in clients.values():
            loop.run(client.__aenter__())
        callers = Callers(stack, clients)
        try:

            @settings(max_examples=40, phases=[Phase.generate], **_SETTINGS)  # type: ignore[arg-type]
            @given(STEPS)
            def check(steps: list[tuple[str, str, str, str]]) -> None:
                for step in steps:
                    loop.run(callers.step(*step))

            check()
        finally:
            for client in clients.values():
                loop.run(client.aclose())
            loop.run(running.__aexit__(None, None, None))
    assert {tenant for tenant, _ in callers.hits} == set(TENANTS)
    assert {source for _, source in callers.hits} == {Source.EXACT, Source.SEMANTIC}
