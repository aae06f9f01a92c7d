"""The lookup path and the intake together, on a fake embedder and a clock to turn."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import NoOpTracer

from cache_svc.departures import Departures
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Query
from cache_svc.faiss_index import FaissIndex
from cache_svc.intake import Intake, IntakeLimits, Refused, Stored
from cache_svc.lookup import Hit, LookupPath, Miss, MissReason, SemanticTier, Tier
from cache_svc.quarantine import Quarantine
from cache_svc.scoped_index import ScopedIndex
from cache_svc.shortlist_index import ShortlistIndex
from cache_svc.stats import Stats
from cache_svc.store import MemoryStore, Removal
from cache_svc.verifier import ACCEPTED, Look, Verdict
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import HashEmbedder, TurnedClock, answer_of, key_of, seconds, wire_key
from tests.unit.cache_svc.test_shortlist_index import FaultyDevice, device_of

LIMITS = IntakeLimits(default_ttl_s=60, max_ttl_s=600, max_answer_bytes=10_000, max_tags=3)


class WordVerifier:
    """Rejects pairs of which one says "trap"; thinks on a thread where one says "hard"."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.may_judge = threading.Event()
        self.may_judge.set()

    def screen(self, query: str, candidate: str, similarity: float) -> Verdict | None:
        return None if "hard" in query else self._judge(query, candidate)

    def screen_each(self, query: str, candidates: Sequence[Look]) -> Iterator[Verdict | None]:
        return (self.screen(query, *candidate) for candidate in candidates)

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        self.threads.append(threading.current_thread().name)
        assert self.may_judge.wait(5)
        return self._judge(query, candidate)

    @staticmethod
    def _judge(query: str, candidate: str) -> Verdict:
        if ("trap" in query) != ("trap" in candidate):
            return Verdict(accepted=False, rule="trap", reason="a trap")
        return ACCEPTED


@dataclass
class Cache:
    """The parts of a sidecar without its server."""

    path: LookupPath
    intake: Intake
    store: MemoryStore
    index: ScopedIndex
    embedder: HashEmbedder
    quarantine: Quarantine
    clock: TurnedClock
    stats: Stats
    verifier: WordVerifier

    async def put(self, text: str, **fields: str) -> Stored | Refused:
        answer = answer_of(f"answer to {text}")
        return await self.intake.store(
            cache_pb2.StoreEntry(key=wire_key(text, **fields), answer=answer)
        )

    async def ask(self, text: str, **options: object) -> Hit | Miss:
        names = {name: options.pop(name) for name in ("tenant", "scope") if name in options}
        query = Query(key_of(text, **names), **options)  # type: ignore[arg-type]  # a test's own
        return await self.path.lookup(query, None)


@asynccontextmanager
async def open_cache(
    *, max_bytes: int = 1 << 20, min_similarity: float = 0.9, cosine: float = 0.95
) -> AsyncIterator[Cache]:
    clock, embedder, stats = TurnedClock(), HashEmbedder(cosine), Stats()
    with ThreadPoolExecutor(1, thread_name_prefix="judge") as executor:
        async with EmbeddingQueue.open(
            embedder, max_batch=4, max_waiting=64, max_text_bytes=1000, kept_vectors=16
        ) as queue:
            index = ScopedIndex(16, lambda _place: FaissIndex(16), executor, inline_rows=40)
            store = MemoryStore(max_bytes, clock, Departures(index, stats))
            quarantine = Quarantine(10)
            verifier = WordVerifier()
            tier = SemanticTier(queue, index, verifier, min_similarity, 4, 5.0, executor)
            yield Cache(
                LookupPath(store, tier, clock, NoOpTracer()),
                Intake(store, index, queue, quarantine, LIMITS, clock),
                store,
                index,
                embedder,
                quarantine,
                clock,
                stats,
                verifier,
            )


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    async with open_cache() as cache:
        yield cache


async def test_exact_then_semantic_then_miss(cache: Cache) -> None:
    """The same request hits exactly, one of the same meaning semantically, another not at all."""
    await cache.put("cats: one")
    exact, similar = await cache.ask("cats: one"), await cache.ask("cats: two")
    assert isinstance(exact, Hit)
    assert isinstance(similar, Hit)
    assert exact.tier is Tier.EXACT
    assert similar.tier is Tier.SEMANTIC
    assert similar.similarity == pytest.approx(0.95, abs=0.02)
    assert await cache.ask("dogs: one") == Miss(MissReason.BELOW_THRESHOLD)
    assert await cache.ask("cats: two", scope="elsewhere") == Miss(MissReason.ABSENT)


async def test_only_the_costly_part_changes_the_thread(cache: Cache) -> None:
    """What the screen settles stays on the event loop; what it leaves is judged on a thread."""
    await cache.put("cats: one")
    assert isinstance(await cache.ask("cats: two"), Hit)
    assert not cache.verifier.threads
    assert isinstance(await cache.ask("cats: hard"), Hit)
    assert await cache.ask("cats: hard trap") == Miss(MissReason.REJECTED)
    assert [name.split("_")[0] for name in cache.verifier.threads] == ["judge", "judge"]


async def test_a_lookup_judges_two_candidates_at_most(cache: Cache) -> None:
    """A crowd of look-alikes cannot make one lookup long."""
    for i in range(4):
        await cache.put(f"cats: trap {i}")
    assert await cache.ask("cats: hard") == Miss(MissReason.REJECTED)
    assert len(cache.verifier.threads) == 2


async def test_an_answer_removed_while_it_is_judged_is_not_served(cache: Cache) -> None:
    """Feedback wins over a verdict that was on its way."""
    stored = await cache.put("cats: one")
    assert isinstance(stored, Stored)
    cache.verifier.may_judge.clear()
    asked = asyncio.create_task(cache.ask("cats: hard"))
    while not cache.verifier.threads:
        await asyncio.sleep(0)
    cache.store.remove([stored.entry], Removal.INVALIDATED)
    cache.verifier.may_judge.set()
    assert isinstance(await asked, Miss)


async def test_exact_hits_need_no_embedder(cache: Cache) -> None:
    """An exact hit never waits behind, or fails with, the embedder."""
    await cache.put("cats: one")
    batches = len(cache.embedder.batches)
    cache.embedder.failure = RuntimeError("gone")
    assert isinstance(await cache.ask("cats: one"), Hit)
    assert len(cache.embedder.batches) == batches


@pytest.mark.parametrize("compares", [True, False])
async def test_what_is_found_at_once_is_what_a_lookup_finds(cache: Cache, compares: bool) -> None:
    """A hit always; a miss only where no text is compared, for that would have to wait."""
    path = cache.path
    if not compares:
        path = LookupPath(cache.store, None, cache.clock, NoOpTracer())
    await cache.put("cats: one")
    cache.clock.now_s += 30
    known, unknown = Query(key_of("cats: one")), Query(key_of("dogs: one"))
    stale = replace(known, max_age_s=10.0)
    assert isinstance(path.find_at_once(known), Hit)
    for query in (known, unknown, stale):
        found = path.find_at_once(query)
        if compares and query is not known:
            assert found is None
        else:
            assert found == await path.lookup(query, None)


async def test_miss_and_store_embed_once(cache: Cache) -> None:
    """Storing what was just looked up costs no second embedding."""
    await cache.ask("cats: one")
    await cache.put("cats: one")
    assert cache.embedder.batches == [["cats: one"]]


@pytest.mark.parametrize("fault", ["raises", "nan"])
async def test_a_sick_embedder_is_a_miss(cache: Cache, fault: str) -> None:
    """Semantic failures degrade to a miss; answers are still stored, for exact hits."""
    if fault == "raises":
        cache.embedder.failure = RuntimeError("gone")
    else:
        cache.embedder.spoiled = True
    missed = await cache.ask("cats: one")
    assert missed == Miss(MissReason.DEGRADED, "embedding_failed")
    kept = await cache.put("cats: one")
    assert isinstance(kept, Stored)
    assert "degraded" in kept.note
    assert isinstance(await cache.ask("cats: one"), Hit)
    assert cache.store.usage().vectors == len(cache.index) == 0


async def test_a_failing_device_is_a_degraded_miss(cache: Cache) -> None:
    """A GPU that fails in a search costs the semantic tier its hit, and never an error."""
    kept = await cache.put("cats: one")
    assert isinstance(kept, Stored)
    place = kept.entry.key.place
    source = FaissIndex(16)
    source.add(kept.entry.id, cache.embedder.embed(["cats: one"])[0])
    index = ShortlistIndex.build(source, FaultyDevice)
    cache.index.remove(place, [kept.entry.id])
    assert cache.index.install(place, index)
    assert isinstance(await cache.ask("cats: two"), Hit)
    device_of(index).broken = True
    assert await cache.ask("cats: two") == Miss(MissReason.DEGRADED, "device_failed")
    assert isinstance(await cache.ask("cats: one"), Hit)


async def test_no_time_left_is_a_miss(cache: Cache) -> None:
    """A lookup whose caller has no time for an embedding answers before the deadline."""
    query = Query(key_of("cats: one"))
    assert await cache.path.lookup(query, 0.001) == Miss(MissReason.DEGRADED, "timeout")
    await cache.put("cats: one")
    assert isinstance(await cache.path.lookup(query, 0.001), Hit)


async def test_the_verifier_vetoes_and_the_next_is_served(cache: Cache) -> None:
    """A rejected look-alike is not served, and does not hide a true neighbour behind it."""
    await cache.put("cats: trap")
    assert await cache.ask("cats: two") == Miss(MissReason.REJECTED)
    await cache.put("cats: true")
    hit = await cache.ask("cats: two")
    assert isinstance(hit, Hit)
    assert hit.entry.key.text == "cats: true"


async def test_similarity_floor_is_only_raised(cache: Cache) -> None:
    """A caller can ask for more similarity than the operator, never for less."""
    await cache.put("cats: one")
    assert isinstance(await cache.ask("cats: two", min_similarity=0.5), Hit)
    assert await cache.ask("cats: two", min_similarity=0.99) == Miss(MissReason.BELOW_THRESHOLD)
    assert await cache.ask("dogs: two", min_similarity=-1.0) == Miss(MissReason.BELOW_THRESHOLD)


async def test_threshold_zero_is_honoured() -> None:
    """An operator's floor of 0 is a floor of 0, not "unset"."""
    async with open_cache(min_similarity=0.0, cosine=0.2) as cache:
        await cache.put("cats: one")
        assert isinstance(await cache.ask("cats: two"), Hit)


async def test_max_age(cache: Cache) -> None:
    """An answer older than the request accepts is stale in both tiers, and not removed."""
    await cache.put("cats: one")
    cache.clock.now_s += 30
    assert await cache.ask("cats: one", max_age_s=29.0) == Miss(MissReason.STALE)
    assert await cache.ask("cats: two", max_age_s=29.0) == Miss(MissReason.STALE)
    hit = await cache.ask("cats: two", max_age_s=30.0)
    assert isinstance(hit, Hit)
    assert hit.age_s == 30
    await cache.put("cats: three")  # a fresh neighbour answers for the stale exact entry
    fresh = await cache.ask("cats: one", max_age_s=29.0)
    assert isinstance(fresh, Hit)
    assert fresh.tier is Tier.SEMANTIC


async def test_expired_in_both_tiers(cache: Cache) -> None:
    """No hit of either tier lengthens a life, and none comes after it."""
    await cache.put("cats: one")
    for _ in range(5):
        cache.clock.now_s += 11
        assert isinstance(await cache.ask("cats: one"), Hit)
        assert isinstance(await cache.ask("cats: two"), Hit)
    cache.clock.now_s += 5
    assert await cache.ask("cats: one") == Miss(MissReason.ABSENT)
    assert await cache.ask("cats: two") == Miss(MissReason.ABSENT)


async def test_a_clock_that_steps_back_gives_no_negative_age(cache: Cache) -> None:
    """Ages are never negative."""
    await cache.put("cats: one")
    cache.clock.now_s -= 10
    hit = await cache.ask("cats: one")
    assert isinstance(hit, Hit)
    assert hit.age_s == 0


async def test_no_text_to_compare(cache: Cache) -> None:
    """A request without a last user turn, or beyond the window, has the exact tier only."""
    bare = replace(key_of("raw completion"), text="")
    assert await cache.path.lookup(Query(bare), None) == Miss(MissReason.NOT_COMPARABLE)
    assert await cache.ask("word " * 300) == Miss(MissReason.NOT_COMPARABLE)
    kept = await cache.put("word " * 300)
    assert isinstance(kept, Stored)
    assert kept.note
    assert isinstance(await cache.ask("word " * 300), Hit)


async def test_quarantined_requests_stay_exact_only(cache: Cache) -> None:
    """After a wrong hit the same answer, stored again, no longer serves look-alikes."""
    first = await cache.put("cats: one")
    assert isinstance(first, Stored)
    cache.quarantine.bar(first.entry.key)
    cache.store.remove([first.entry], Removal.INVALIDATED)
    assert await cache.ask("cats: two") == Miss(MissReason.ABSENT)
    await cache.put("cats: one")
    assert await cache.ask("cats: two") == Miss(MissReason.ABSENT)
    assert isinstance(await cache.ask("cats: one"), Hit)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ttl": seconds(0)}, "ttl"),
        ({"ttl": seconds(-5)}, "ttl"),
        ({"tags": ["a", "b", "c", "d"]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["x" * 257]}, "tags"),
        ({"answer": answer_of("x" * 10_001)}, "answer"),
        ({"answer": cache_pb2.Answer()}, "not finished"),
        ({"key": cache_pb2.CacheKey()}, "key.tenant"),
    ],
)
async def test_refused_entries_leave_nothing(
    cache: Cache, change: dict[str, object], reason: str
) -> None:
    """An entry that may not be stored says why, and is in no tier."""
    fields = {"key": wire_key("cats: one"), "answer": answer_of("whole"), **change}
    kept = await cache.intake.store(cache_pb2.StoreEntry(**fields))  # type: ignore[arg-type]
    assert isinstance(kept, Refused)
    assert reason in kept.reason
    assert cache.store.usage() == (0, 0, 0)
    assert len(cache.index) == 0


async def test_ttl_is_cut_to_the_limit(cache: Cache) -> None:
    """A longer wish than the operator allows is cut, not refused."""
    offered = cache_pb2.StoreEntry(
        key=wire_key("cats: one"), answer=answer_of("a"), ttl=seconds(10_000)
    )
    kept = await cache.intake.store(offered)
    assert isinstance(kept, Stored)
    assert kept.entry.expires_s - kept.entry.created_s == 600


async def test_too_large_for_the_store_leaves_no_vector() -> None:
    """When the store refuses an entry, the index does not keep its vector."""
    async with open_cache(max_bytes=1200) as cache:
        kept = await cache.put("cats: one")
        assert isinstance(kept, Refused)
        assert len(cache.index) == 0


async def test_concurrent_lookups_and_stores(cache: Cache) -> None:
    """Many lookups during many stores and evictions: every hit is whole and of its scope."""

    async def one(i: int) -> None:
        scope = f"s{i % 3}"
        await cache.put(f"cats: {i}", scope=scope)
        hit = await cache.ask(f"cats: {i} again", scope=scope)
        assert isinstance(hit, Hit)
        assert hit.entry.key.place == key_of("", scope=scope).place

    await asyncio.gather(*(one(i) for i in range(60)))
    assert cache.store.usage().vectors == len(cache.index)


_Action = st.tuples(
    st.sampled_from(["put", "ask", "wait", "forget"]),
    st.sampled_from(["acme", "other"]),
    st.sampled_from(["s1", "s2"]),
    st.sampled_from(["cats: 1", "cats: 2", "cats: trap", "dogs: 1"]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=st.lists(_Action, max_size=25))
def test_hits_keep_to_tenant_and_scope(actions: list[tuple[str, str, str, str]]) -> None:
    """Whatever happens, a hit is the asker's own, of its scope, near, accepted and alive;
    and the index holds exactly the vectors of living or unswept entries."""

    async def play() -> None:
        async with open_cache(max_bytes=8000) as cache:
            for action, tenant, scope, text in actions:
                match action:
                    case "put":
                        await cache.put(text, tenant=tenant, scope=scope)
                    case "wait":
                        cache.clock.now_s += 25
                    case "forget":
                        cache.store.expire()
                    case _:
                        outcome = await cache.ask(text, tenant=tenant, scope=scope)
                        if isinstance(outcome, Hit):
                            entry = outcome.entry
                            assert entry.key.place == key_of(text, tenant=tenant, scope=scope).place
                            assert entry.expires_s > cache.clock.now_s
                            assert entry.key.text[:4] == text[:4]
                            assert ("trap" in entry.key.text) == ("trap" in text)
                usage = cache.store.usage()
                assert usage.bytes <= 8000
                assert usage.vectors == len(cache.index)

    asyncio.run(play())
