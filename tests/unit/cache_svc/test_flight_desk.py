"""Who is told to wait for which question under way; what routers may say of generations."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from cache_svc import questions_in_flight
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Query
from cache_svc.faiss_index import FaissIndex
from cache_svc.flight_desk import MAX_HELD, FlightDesk
from cache_svc.lookup import Miss, MissReason, SemanticTier
from cache_svc.questions_in_flight import QuestionsInFlight
from cache_svc.scoped_index import ScopedIndex
from sidecache.errors import InvalidRequest, Overloaded
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import HashEmbedder, TurnedClock, digest, key_of, wire_key
from tests.unit.cache_svc.test_lookup import WordVerifier

LEASE_S = 10.0
FLOOR = 0.6
# Two members of a family of the fake embedder are that near.
COSINE = 0.95


@dataclass
class Desk:
    """A desk with its clock, and calls to it in few words."""

    desk: FlightDesk
    questions: QuestionsInFlight
    verifier: WordVerifier
    clock: TurnedClock

    async def miss(
        self,
        text: str,
        router: str = "r1:1",
        *,
        floor: float = FLOOR,
        awaits: bool = True,
        reason: MissReason = MissReason.ABSENT,
        **fields: str,
    ) -> cache_pb2.CacheMiss:
        """What a lookup that missed hears of generations."""
        request = cache_pb2.LookupRequest(key=wire_key(text, **fields))
        request.flight.router, request.flight.request_id = router, f"id of {text}"
        request.flight.awaits_paraphrase, request.flight.is_awaitable = awaits, True
        miss = cache_pb2.CacheMiss()
        query = Query(key_of(text, **fields))
        await self.desk.claim(request, query, Miss(reason), miss, floor=floor, left_s=5.0)
        return miss

    async def ended(self, text: str) -> bool:
        """Wait for a question under way; whether it was answered."""
        exact = key_of(text).exact
        request = cache_pb2.AwaitFlightRequest(tenant="acme", exact=exact)
        return (await self.desk.wait(request)).answered


@asynccontextmanager
async def open_desk(min_similarity: float = 0.9) -> AsyncIterator[Desk]:
    clock, embedder, verifier = TurnedClock(), HashEmbedder(COSINE), WordVerifier()
    with ThreadPoolExecutor(1) as executor:
        async with EmbeddingQueue.open(
            embedder, max_batch=4, max_waiting=64, max_text_bytes=1000, kept_vectors=16
        ) as queue:
            index = ScopedIndex(16, lambda _place: FaissIndex(16), executor, inline_rows=40)
            tier = SemanticTier(queue, index, verifier, FLOOR, 4, 5.0, executor)
            questions = QuestionsInFlight(tier, min_similarity)
            yield Desk(FlightDesk(clock, LEASE_S, questions, 5.0), questions, verifier, clock)


async def test_who_asks_in_other_words_is_told_of_the_question_under_way() -> None:
    """With how near it is; he has no lease, so that nobody waits for who waits."""
    async with open_desk() as desk:
        first = await desk.miss("reset: one")
        assert not first.HasField("paraphrase")
        for _ in range(2):
            told = await desk.miss("reset: two", "r2:1")
            assert told.paraphrase.exact == key_of("reset: one").exact
            assert told.paraphrase.similarity == pytest.approx(COSINE, abs=0.02)
            assert not told.HasField("flight")
        assert len(desk.questions) == 1


async def test_who_has_waited_enough_has_the_lease() -> None:
    """And his question is under way from then on."""
    async with open_desk() as desk:
        await desk.miss("reset: one")
        told = await desk.miss("reset: two", awaits=False)
        assert not told.HasField("paraphrase")
        assert len(desk.questions) == 2


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("other: two", {}),
        ("reset: a trap", {}),
        ("reset: a hard trap", {}),
        ("reset: two", {"floor": 0.99}),
        ("reset: two", {"tenant": "umbrella"}),
        ("reset: two", {"scope": "another"}),
        ("reset: two", {"reason": MissReason.DEGRADED}),
    ],
    ids=["far", "vetoed", "vetoed slowly", "floor", "tenant", "scope", "degraded"],
)
async def test_who_would_not_be_served_is_told_of_nothing(
    text: str, more: dict[str, object]
) -> None:
    """Scope, similarity and the verifier decide as they do about a stored answer."""
    async with open_desk() as desk:
        await desk.miss("reset: one")
        told = await desk.miss(text, **more)  # type: ignore[arg-type]  # a test's own
        assert not told.HasField("paraphrase")


async def test_the_operators_similarity_is_a_floor() -> None:
    """Far above that of a hit."""
    async with open_desk(min_similarity=0.99) as desk:
        await desk.miss("reset: one")
        assert not (await desk.miss("reset: two")).HasField("paraphrase")


async def test_a_question_answered_while_it_was_judged_is_waited_for_no_more() -> None:
    """The thread that judges takes its time."""
    async with open_desk() as desk:
        await desk.miss("reset: one")
        desk.verifier.may_judge.clear()
        asking = asyncio.create_task(desk.miss("reset: hard"))
        while not desk.verifier.threads:
            await asyncio.sleep(0.001)
        desk.desk.answered("acme", key_of("reset: one").exact)
        desk.verifier.may_judge.set()
        assert not (await asking).HasField("paraphrase")


@pytest.mark.parametrize("answered", [True, False])
async def test_a_wait_ends_with_the_generation(answered: bool) -> None:
    """Whichever way, and for all who wait."""
    async with open_desk() as desk:
        await desk.miss("reset: one")
        waiting = [asyncio.create_task(desk.ended("reset: one")) for _ in range(3)]
        await asyncio.sleep(0)
        exact = key_of("reset: one").exact
        if answered:
            desk.desk.answered("acme", exact)
        else:
            gone = cache_pb2.HeldFlight(tenant="acme", exact=exact, request_id="x")
            desk.desk.hold(cache_pb2.HoldFlightsRequest(router="r1:1", ended=[gone]))
        assert await asyncio.gather(*waiting) == [answered] * 3
        assert not len(desk.questions)
        assert not await desk.ended("reset: one")


async def test_a_wait_ends_with_the_lease_of_a_dead_router() -> None:
    """Nobody said that it ended."""
    async with open_desk() as desk:
        await desk.miss("reset: one")
        desk.clock.now_s += LEASE_S - 0.05
        waiting = asyncio.create_task(desk.ended("reset: one"))
        await asyncio.sleep(0)
        desk.clock.now_s += 0.05
        async with asyncio.timeout(5):
            assert not await waiting


async def test_waits_and_questions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bounds a question is not waited for, and a call is refused."""
    monkeypatch.setattr(questions_in_flight, "MAX_OF_A_PLACE", 2)
    monkeypatch.setattr(questions_in_flight, "MAX_WAITING", 1)
    async with open_desk() as desk:
        for number in range(3):
            await desk.miss(f"{number}")
        assert len(desk.questions) == 2
        waiting = asyncio.create_task(desk.ended("0"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await desk.ended("0")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        again = asyncio.create_task(desk.ended("0"))
        await asyncio.sleep(0)
        desk.desk.answered("acme", key_of("0").exact)
        assert await again


async def test_a_takeover_is_told_of_who_was_sooner() -> None:
    """In the order of what was asked; an empty router is the caller."""
    async with open_desk() as desk:
        await desk.miss("one", "r1:1")
        await desk.miss("two", "r2:1")
        held = [
            cache_pb2.HeldFlight(
                tenant="acme", exact=key_of(text).exact, request_id="x", instead_of="r1:1"
            )
            for text in ("one", "two", "three")
        ]
        response = desk.desk.hold(cache_pb2.HoldFlightsRequest(router="r3:1", held=held))
        assert [lease.router for lease in response.leases] == ["", "r2:1", ""]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (cache_pb2.HoldFlightsRequest(), "router"),
        (
            cache_pb2.HoldFlightsRequest(
                router="r", held=[cache_pb2.HeldFlight(tenant="acme", exact=b"short")]
            ),
            "held",
        ),
        (
            cache_pb2.HoldFlightsRequest(
                router="r", ended=[cache_pb2.HeldFlight(exact=digest("x"))]
            ),
            "tenant",
        ),
        (
            cache_pb2.HoldFlightsRequest(
                router="r",
                held=[cache_pb2.HeldFlight(tenant="acme", exact=digest("x"))] * (MAX_HELD + 1),
            ),
            "held",
        ),
    ],
    ids=["nobody", "a short key", "no tenant", "too many"],
)
async def test_what_cannot_be_is_refused(
    request_: cache_pb2.HoldFlightsRequest, field: str
) -> None:
    """And names the field."""
    async with open_desk() as desk:
        with pytest.raises(InvalidRequest) as refused:
            desk.desk.hold(request_)
        assert refused.value.field == field
