"""The sidecar as a router sees it, by call and over the link, with the real embedder."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability import names
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import InvalidRequest, SetupError, SidecacheError, from_rpc_error
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import Sidecar, answer_of, open_sidecar, text_of, wire_key
from tests.fixtures.durable import small_disk
from tests.unit.observability.conftest import End

FRANCE = "What is the capital of France?"


def _patient(minilm_path: Path) -> dict[str, object]:
    """The default semantic tier, but for its time budget: a busy machine changes no outcome."""
    return {"embedder_path": minilm_path, "budget_s": 30}


@pytest.fixture(params=["call", "link"])
async def sidecar(
    request: pytest.FixtureRequest, tmp_path: Path, minilm_path: Path
) -> AsyncIterator[Sidecar]:
    by_link = request.param == "link"
    semantic = _patient(minilm_path)
    async with open_sidecar(tmp_path, by_link=by_link, semantic=semantic) as sidecar:
        yield sidecar


async def _refusal(call: "grpc.aio.UnaryUnaryCall[object, object]") -> SidecacheError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_exact_hit_returns_the_answer_as_it_was_streamed(sidecar: Sidecar) -> None:
    """Deltas, finish and provenance of a hit equal what was stored, piece by piece."""
    stored = await sidecar.store(FRANCE, "Par", "is", ".")
    sidecar.clock.now_s += 12.5
    hit = (await sidecar.lookup(FRANCE)).hit
    assert stored.status == cache_pb2.STORE_STATUS_STORED
    assert hit.tier == cache_pb2.TIER_EXACT
    assert hit.entry_id == stored.entry_id
    assert hit.age.ToTimedelta().total_seconds() == 12.5
    assert hit.answer == answer_of("Par", "is", ".")


async def test_the_tour(sidecar: Sidecar) -> None:
    """With default settings a paraphrase hits; look-alikes, negations and other numbers miss."""
    await sidecar.store(FRANCE, "Paris")
    await sidecar.store("How do I cancel my subscription?", "Press cancel.")
    await sidecar.store("How many grams are in 2 ounces?", "57")
    for paraphrase in (
        "What's the capital city of France?",
        "How can I cancel my subscription?",
        "How many grams are there in two ounces?",
    ):
        hit = (await sidecar.lookup(paraphrase)).hit
        assert hit.tier == cache_pb2.TIER_SEMANTIC, paraphrase
    for trap in (
        "What is the capital of Spain?",
        "How do I not cancel my subscription?",
        "How do I renew my subscription?",
        "How many grams are in 3 ounces?",
        "How many ounces are in 2 grams?",
    ):
        assert (await sidecar.lookup(trap)).HasField("miss"), trap


async def test_no_tier_crosses_tenants_or_scopes(sidecar: Sidecar) -> None:
    """Another tenant, history, model or system prompt never sees an answer; its owner does."""
    await sidecar.store(FRANCE, "Paris", tenant="acme", scope="history one")
    for tenant, scope in (("other", "history one"), ("acme", "history two")):
        for text in (FRANCE, "What's the capital city of France?"):
            assert (await sidecar.lookup(text, tenant=tenant, scope=scope)).HasField("miss")
    assert (await sidecar.lookup(FRANCE, tenant="acme", scope="history one")).HasField("hit")
    # The same bytes under another tenant's name are another tenant's.
    stolen = wire_key(FRANCE, tenant="acme", scope="history one")
    stolen.tenant = "other"
    response = await sidecar.stub.Lookup(cache_pb2.LookupRequest(key=stolen))
    assert response.HasField("miss")


async def test_feedback_removes_a_false_hit_for_good(sidecar: Sidecar) -> None:
    """A wrong hit is out of both tiers at once, and does not come back by being stored again."""
    paraphrase = "What's the capital city of France?"
    stored = await sidecar.store(FRANCE, "Lyon")
    for tenant, name, expected in (
        ("other", stored.entry_id, False),
        ("acme", "no such entry", False),
        ("acme", stored.entry_id, True),
        ("acme", stored.entry_id, False),
    ):
        request = cache_pb2.FeedbackRequest(tenant=tenant, entry_id=name, wrong=True)
        assert (await sidecar.stub.Feedback(request)).quarantined is expected
    assert (await sidecar.lookup(FRANCE)).HasField("miss")
    assert (await sidecar.lookup(paraphrase)).HasField("miss")
    again = await sidecar.store(FRANCE, "Lyon")
    assert again.status == cache_pb2.STORE_STATUS_EXACT_ONLY
    assert (await sidecar.lookup(FRANCE)).HasField("hit")
    assert (await sidecar.lookup(paraphrase)).HasField("miss")


async def test_invalidate(sidecar: Sidecar) -> None:
    """Entries go by tag, model, namespace, id or all together; a dry run only counts."""
    await sidecar.store("a b", tags=["x"], model="m1")
    await sidecar.store("c d", tags=["x", "y"], model="m2", namespace="n")
    await sidecar.store("e f", tenant="other", tags=["x"])

    async def invalidate(**fields: object) -> int:
        request = cache_pb2.InvalidateRequest(tenant="acme", **fields)  # type: ignore[arg-type]
        return (await sidecar.stub.Invalidate(request)).entries

    assert await invalidate(tag="x", dry_run=True) == 2
    assert await invalidate(tag="x", model="m2", dry_run=True) == 1
    assert await invalidate(namespace="", dry_run=True) == 1
    assert await invalidate(entry_id="nonsense") == 0
    assert await invalidate(tag="y") == 1
    assert (await sidecar.lookup("c d", model="m2", namespace="n")).HasField("miss")
    assert await invalidate(all=True) == 1
    assert (await sidecar.stats()).entries == (await sidecar.stats()).vectors == 1
    assert (await sidecar.lookup("e f", tenant="other")).HasField("hit")


async def test_store_keeps_the_good_and_refuses_the_bad(sidecar: Sidecar) -> None:
    """A bad entry is refused by itself, with a reason, in its place of the results."""
    good = cache_pb2.StoreEntry(key=wire_key("good"), answer=answer_of("a"))
    torn = cache_pb2.StoreEntry(key=wire_key("torn"), answer=cache_pb2.Answer())
    bare = cache_pb2.StoreEntry(key=wire_key("bare"), answer=answer_of("a"))
    bare.key.semantic_text = ""
    response = await sidecar.stub.Store(cache_pb2.StoreRequest(entries=[good, torn, bare]))
    assert [result.status for result in response.results] == [
        cache_pb2.STORE_STATUS_STORED,
        cache_pb2.STORE_STATUS_REFUSED,
        cache_pb2.STORE_STATUS_EXACT_ONLY,
    ]
    assert "not finished" in response.results[1].reason
    assert (await sidecar.lookup("torn")).HasField("miss")
    stats = await sidecar.stats("acme")
    assert (stats.entries, stats.vectors, stats.stored, stats.refused) == (2, 1, 2, 1)


async def test_a_flood_of_new_entries_is_refused(tmp_path: Path) -> None:
    """Beyond its rate a tenant's entries are refused by name and counted; others go on."""
    admission = {"new_entries_per_s": 2, "burst": 3}
    async with open_sidecar(tmp_path, semantic={"enabled": False}, admission=admission) as sidecar:
        results = [await sidecar.store(f"prompt {number}") for number in range(5)]
        refused = [one.reason for one in results if one.status == cache_pb2.STORE_STATUS_REFUSED]
        assert refused == ["the tenant stores more than 2 entries a second"] * 2
        assert (await sidecar.store("prompt", tenant="other")).entry_id
        sidecar.clock.now_s += 1
        assert (await sidecar.store("prompt 4")).entry_id
        stats = await sidecar.stats("acme")
        assert (stats.stored, stats.refused, stats.entries) == (4, 2, 4)


async def test_a_full_disk_refuses_and_serves_on(tmp_path: Path) -> None:
    """Where the disk is full, Store says REFUSED and counts it, and what is kept is served."""
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        off, end = {"enabled": False}, End.start("sidecache-cache")
        async with open_sidecar(
            tmp_path, telemetry=end.telemetry, store={"path": disk}, semantic=off
        ) as sidecar:
            assert (await sidecar.store("before")).entry_id
            refused = 0
            for number in range(8):
                result = await sidecar.store(f"big {number}", "x" * 900_000)
                refused += result.status == cache_pb2.STORE_STATUS_REFUSED
            assert refused > 2
            assert (await sidecar.stats()).refused == refused
            assert (await sidecar.stats()).entries == 9 - refused
            lost = (await sidecar.stats()).lost_answers
            assert [p.value for p in end.points(names.CACHE_LOST_ANSWERS)] == [lost]
            assert lost
            assert (await sidecar.lookup("before")).HasField("hit")


async def test_stats_count_what_happened(sidecar: Sidecar) -> None:
    """Hits by tier, misses, rejections and expiries are counted, for all and for each tenant."""
    await sidecar.lookup(FRANCE)
    await sidecar.store(FRANCE, "Paris", ttl_s=60)
    await sidecar.lookup(FRANCE)
    await sidecar.lookup("What's the capital city of France?")
    await sidecar.lookup("What is not the capital of France?")
    await sidecar.explain(FRANCE)  # not counted
    stats = await sidecar.stats()
    assert (stats.lookups, stats.exact_hits, stats.semantic_hits) == (4, 1, 1)
    assert (stats.misses, stats.rejected, stats.degraded) == (2, 1, 0)
    assert stats.entries == stats.vectors == stats.stored == 1
    assert 1536 < stats.bytes < 4096 < stats.max_bytes
    assert len(stats.embedder_fingerprint) == 64
    assert (await sidecar.stats("acme")).lookups == 4
    assert (await sidecar.stats("other")).lookups == 0
    sidecar.clock.now_s += 60
    stats = await sidecar.stats()
    assert (stats.entries, stats.bytes, stats.vectors, stats.expired) == (0, 0, 0, 1)
    assert stats.uptime.seconds == 60


async def test_explain_says_why(sidecar: Sidecar) -> None:
    """Explain shows the outcome, each candidate with its verdict, and the floor that applied."""
    await sidecar.store(FRANCE, "Paris")
    explained = await sidecar.explain("What is not the capital of France?")
    (candidate,) = explained.candidates
    assert explained.outcome.miss.reason == cache_pb2.MISS_REASON_REJECTED
    assert candidate.similarity > explained.threshold > 0.5
    assert not candidate.accepted
    assert "negation" in candidate.verdict
    assert (await sidecar.explain("How do I bake bread?")).candidates[0].verdict.startswith("simil")
    assert (await sidecar.explain("x " * 5000)).outcome.miss.reason == (
        cache_pb2.MISS_REASON_NOT_COMPARABLE
    )


async def test_bad_requests_name_their_field(sidecar: Sidecar) -> None:
    """A malformed request is INVALID_ARGUMENT and names the field."""
    stub = sidecar.stub
    bad_key = wire_key(FRANCE)
    bad_key.scope = b"short"
    many = [cache_pb2.StoreEntry()] * 65
    with pytest.raises(InvalidRequest) as refused:
        await sidecar.ask(cache_pb2.LookupRequest(key=bad_key))
    assert refused.value.field == "key.scope"
    with pytest.raises(InvalidRequest) as refused:
        await sidecar.keep(cache_pb2.StoreRequest(entries=many))
    assert refused.value.field == "entries"
    for call, field in (
        (stub.Explain(cache_pb2.ExplainRequest(key=bad_key)), "key.scope"),
        (stub.Invalidate(cache_pb2.InvalidateRequest(all=True)), "tenant"),
        (stub.Invalidate(cache_pb2.InvalidateRequest(tenant="acme")), "all"),
        (stub.Feedback(cache_pb2.FeedbackRequest(entry_id="x")), "tenant"),
    ):
        error = await _refusal(call)  # type: ignore[arg-type]  # stubs of several methods
        assert isinstance(error, InvalidRequest)
        assert error.field == field
    assert (await sidecar.lookup(FRANCE)).HasField("miss")


def _busy_lookups(sidecar: Sidecar) -> list[asyncio.Task[cache_pb2.LookupResponse]]:
    """Lookups that keep the embedder busy for tens of milliseconds."""
    texts = (f"{i} " + "long question about many things " * 30 for i in range(12))
    return [asyncio.create_task(sidecar.lookup(text)) for text in texts]


async def test_exact_hits_overtake_embeddings(sidecar: Sidecar) -> None:
    """While the embedder is busy with long prompts, exact hits are answered."""
    await sidecar.store(FRANCE, "Paris")
    busy = _busy_lookups(sidecar)
    await asyncio.sleep(0)
    assert (await sidecar.lookup(FRANCE)).HasField("hit")
    assert not all(task.done() for task in busy)
    outcomes = await asyncio.gather(*busy)
    assert all(outcome.HasField("miss") for outcome in outcomes)


async def test_too_slow_an_embedding_is_a_miss(tmp_path: Path, minilm_path: Path) -> None:
    """A lookup over its semantic budget is a miss, counted as degraded; exact hits go on."""
    semantic = {"embedder_path": minilm_path, "budget_s": 1e-6}
    async with open_sidecar(tmp_path, semantic=semantic) as sidecar:
        missed = await sidecar.lookup(FRANCE)
        assert missed.miss.reason == cache_pb2.MISS_REASON_DEGRADED
        await sidecar.store(FRANCE, "Paris")
        assert (await sidecar.lookup(FRANCE)).HasField("hit")
        assert (await sidecar.stats()).degraded == 1


async def test_semantic_tier_off(tmp_path: Path) -> None:
    """Without the semantic tier no embedder is needed, and exact hits are served."""
    async with open_sidecar(tmp_path, semantic={"enabled": False}) as sidecar:
        kept = await sidecar.store(FRANCE, "Paris")
        assert kept.status == cache_pb2.STORE_STATUS_EXACT_ONLY
        assert text_of((await sidecar.lookup(FRANCE)).hit.answer) == "Paris"
        missed = await sidecar.lookup("What's the capital city of France?")
        assert missed.miss.reason == cache_pb2.MISS_REASON_NOT_COMPARABLE
        assert (await sidecar.stats()).embedder_fingerprint == ""


async def test_missing_embedder_is_a_setup_error(tmp_path: Path) -> None:
    """A sidecar whose embedder is missing does not start, and says what to do."""
    with pytest.raises(SetupError, match="sidecache pull"):
        async with open_sidecar(tmp_path, semantic={"embedder_path": tmp_path / "none.onnx"}):
            pytest.fail("it started")


async def test_small_store_stays_within_its_bytes(tmp_path: Path) -> None:
    """Under a stream of stores the bytes stay bounded, and evictions are counted."""
    async with open_sidecar(
        tmp_path, semantic={"enabled": False}, max_bytes=1 << 20, max_answer_bytes=1 << 19
    ) as sidecar:
        for i in range(30):
            await sidecar.store(f"question {i}", "x" * 100_000)
            assert (await sidecar.stats()).bytes <= 1 << 20
        stats = await sidecar.stats()
        assert stats.entries == 10
        assert stats.evicted == 20


async def test_spans_without_content(tmp_path: Path, minilm_path: Path) -> None:
    """A lookup's span tells its outcome, its parts are children, and no prompt is in them."""
    exporter = InMemorySpanExporter()
    telemetry = Telemetry.start("sidecache-cache", TelemetrySettings(), span_exporter=exporter)
    canary = "canary"
    async with open_sidecar(
        tmp_path, telemetry=telemetry, semantic=_patient(minilm_path)
    ) as sidecar:
        await sidecar.store(f"Where is my {canary} bird?", f"in the {canary} cage")
        await sidecar.lookup(f"Where's my {canary} bird?")
        await sidecar.lookup(f"Where is not my {canary} bird?")
        await sidecar.explain(f"Where is not my {canary} bird?")
    spans = exporter.get_finished_spans()
    lookups = [span for span in spans if span.name.endswith("/Lookup")]
    outcomes = [dict(span.attributes or {}).get("sidecache.cache.outcome") for span in lookups]
    assert outcomes == ["semantic", "miss"]
    parts = {
        span.name
        for span in spans
        if span.parent and span.parent.span_id == lookups[0].context.span_id
    }
    assert parts == {"cache embed", "cache search", "cache verify"}
    assert canary not in "".join(span.to_json() for span in spans)


async def test_scope_that_outgrows_flat_search_keeps_its_hits(
    tmp_path: Path, minilm_path: Path
) -> None:
    """A scope rebuilt with inverted lists while it is used still serves every paraphrase."""
    semantic = _patient(minilm_path) | {"flat_rows": 150}
    async with open_sidecar(tmp_path, semantic=semantic) as sidecar:
        for number in range(200):
            await sidecar.store(f"Where is the office of department {number} in our building?")
        for number in range(0, 200, 40):
            text = f"Where is the office of department {number} in our building"
            found = await sidecar.lookup(text)
            assert found.WhichOneof("outcome") == "hit"
            assert text_of(found.hit.answer) == f"answer to {text}?"


async def test_explored_and_audited_pairs_are_judged(tmp_path: Path, minilm_path: Path) -> None:
    """A fresh answer that says the same makes its audit a right one; Explain tells the bound."""
    semantic = _patient(minilm_path) | {"bound": {"audit_share": 1.0}}
    async with open_sidecar(tmp_path, semantic=semantic) as sidecar:
        first = await sidecar.store(FRANCE, "Paris.")
        again = "What's the capital city of France?"
        hit = (await sidecar.lookup(again)).hit
        assert hit.audit
        entry = cache_pb2.StoreEntry(
            key=wire_key(again), answer=answer_of("paris"), audits_entry_id=first.entry_id
        )
        await sidecar.stub.Store(cache_pb2.StoreRequest(entries=[entry]))
        async with asyncio.timeout(20):
            while not (await sidecar.stats()).audited:
                await asyncio.sleep(0.01)
        assert (await sidecar.stats()).audited_wrong == 0
        explained = await sidecar.explain("Which city is the capital of France?")
        assert explained.candidates[0].verdict.startswith("bound: similarity")


async def test_a_bound_without_trust_explores(tmp_path: Path, minilm_path: Path) -> None:
    """Without trust or evidence a near, verified answer is compared, not served."""
    semantic = _patient(minilm_path) | {"bound": {"trusted_false_hits": 0}}
    async with open_sidecar(tmp_path, semantic=semantic) as sidecar:
        stored = await sidecar.store(FRANCE, "Paris.")
        miss = (await sidecar.lookup("What's the capital city of France?")).miss
        assert miss.reason == cache_pb2.MISS_REASON_EXPLORED
        assert miss.explored_entry_id == stored.entry_id
        assert (await sidecar.stats()).explored == 1
