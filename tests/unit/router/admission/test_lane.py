"""A lane under every interleaving: counts, wake-ups, refusals."""

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.admission.capacity import Capacity
from router.admission.fair_queue import Claim
from router.admission.lane import Lane, LateRefusal, QueueBounds
from router.admission.priority import PriorityClass
from sidecache.errors import Overloaded
from tests.unit.router.fleet import Clock

WEIGHTS = dict.fromkeys(PriorityClass, 1.0)


def make_lane(
    slots: int | None = 2, tokens: int | None = None, workers: int = 1, **bounds: float
) -> tuple[Lane, Clock]:
    clock = Clock()
    limits = {"max_claims": 100, "max_tokens": 10**9, "max_wait_s": 1000.0, **bounds}
    capacity: Callable[[], Capacity] = lambda: Capacity(slots, tokens, workers)  # noqa: E731
    lane = Lane(
        capacity,
        QueueBounds(int(limits["max_claims"]), int(limits["max_tokens"]), limits["max_wait_s"]),
        WEIGHTS,
        clock,
    )
    return lane, clock


def claim(tenant: str = "a", cost: int = 10, slots: int = 1) -> Claim:
    return Claim(tenant, PriorityClass.STANDARD, 1.0, cost, slots)


async def pause() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def teach_pace(lane: Lane, clock: Clock, held_s: float = 1.0) -> None:
    """Let the lane see streams of that length."""
    for _ in range(3):
        each = claim()
        await lane.acquire(each, 1000.0)
        clock.now += held_s
        lane.release(each, each.cost)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4))
async def test_cancelled_anywhere_the_counts_stay_right_and_nobody_sleeps_on(
    seed: int, slots: int
) -> None:
    """Random arrivals, ends and cancels: never above capacity, all who stay get their turn."""
    await _storm(random.Random(seed), slots)  # noqa: S311 - repeatable, not secret


async def _storm(draw: random.Random, slots: int) -> None:
    lane, clock = make_lane(slots=slots, tokens=slots * 60)
    done: list[int] = []
    ends: list[asyncio.Event] = []

    async def stream(number: int) -> None:
        mine = claim(draw.choice("abc"), draw.randint(1, 60))
        await lane.acquire(mine, 1000.0)
        try:
            assert lane.held_slots <= slots
            assert lane.held_tokens <= slots * 60
            end = asyncio.Event()
            ends.append(end)
            await end.wait()
        finally:
            lane.release(mine, draw.randint(0, mine.cost))
        done.append(number)

    tasks: list[asyncio.Task[None]] = []
    for number in range(40):
        tasks.append(asyncio.create_task(stream(number)))
        for _ in range(draw.randint(0, 2)):
            await asyncio.sleep(0)
        if draw.random() < 0.3:
            # Also just as its turn comes: the end that lets it in is set first.
            if ends and draw.random() < 0.5:
                ends.pop(draw.randrange(len(ends))).set()
                await asyncio.sleep(0)
            draw.choice(tasks).cancel()
        if ends and draw.random() < 0.5:
            clock.now += draw.random()
            ends.pop(draw.randrange(len(ends))).set()
    for _ in range(400):
        while ends:
            ends.pop().set()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
    assert len(done) == sum(r is None for r in results)
    assert (lane.held_slots, lane.held_tokens, lane.running) == (0, 0, 0)
    assert (lane.waiting, lane.waiting_tokens) == (0, 0)


async def test_a_cancel_just_as_the_turn_comes_gives_the_slot_on() -> None:
    """Granted and cancelled in the same step: the next one starts."""
    lane, _ = make_lane(slots=1)
    running = claim()
    await lane.acquire(running, 10.0)
    second = asyncio.create_task(lane.acquire(claim(), 10.0))
    third = asyncio.create_task(lane.acquire(claim(), 10.0))
    await pause()
    lane.release(running, 0)
    second.cancel()
    await pause()
    assert second.cancelled()
    assert third.done()
    assert (lane.held_slots, lane.waiting) == (1, 0)


async def test_a_turn_that_comes_to_a_cancelled_caller_is_not_lost() -> None:
    """Cancelled first and granted before it ran: the same."""
    lane, _ = make_lane(slots=1)
    running = claim()
    await lane.acquire(running, 10.0)
    second = asyncio.create_task(lane.acquire(claim(), 10.0))
    third = asyncio.create_task(lane.acquire(claim(), 10.0))
    await pause()
    second.cancel()
    lane.release(running, 0)
    await pause()
    assert third.done()
    assert (lane.held_slots, lane.waiting) == (1, 0)


async def test_a_client_that_leaves_lets_a_smaller_one_in() -> None:
    """A large claim waits for tokens; when it leaves, the one behind it starts at once."""
    lane, _ = make_lane(slots=4, tokens=100)
    await lane.acquire(claim(cost=60), 10.0)
    large = asyncio.create_task(lane.acquire(claim(cost=80), 10.0))
    small = asyncio.create_task(lane.acquire(claim(cost=40), 10.0))
    await pause()
    assert not small.done()
    large.cancel()
    await pause()
    assert small.done()


async def test_what_cannot_start_in_time_is_refused_at_once_with_a_time() -> None:
    """One slot, streams of a second: the fifth would take all of its time, and hears when not."""
    lane, clock = make_lane(slots=1)
    await teach_pace(lane, clock)
    await lane.acquire(claim(), 10.0)
    waiting = [asyncio.create_task(lane.acquire(claim(), 10.0)) for _ in range(3)]
    await pause()
    with pytest.raises(Overloaded, match=r"start in 4\.0 s") as refused:
        await lane.acquire(claim(), 4.0)
    assert refused.value.retry_after_s == pytest.approx(4.0 - 0.85 * 4.0)
    # Another tenant's turn comes sooner, so it is let in under the same deadline.
    quiet = asyncio.create_task(lane.acquire(claim("quiet"), 4.0))
    await pause()
    assert lane.waiting == 4
    for task in (*waiting, quiet):
        task.cancel()


async def test_time_runs_out_while_waiting() -> None:
    """A wait ends with a refusal when its bound is over, and its place in the row is free."""
    lane, _ = make_lane(slots=1, max_wait_s=0.01)
    await lane.acquire(claim(), 10.0)
    with pytest.raises(LateRefusal, match="could not start within"):
        await lane.acquire(claim(), 10.0)
    assert (lane.waiting, lane.held_slots, lane.refused_slots) == (0, 1, 1)


async def test_the_queue_is_bounded_and_one_tenant_cannot_fill_it() -> None:
    """A greedy tenant is refused at the bound; a quiet one takes the place of its newest."""
    lane, _ = make_lane(slots=1, max_claims=3)
    await lane.acquire(claim("greedy"), 10.0)
    waiting = [asyncio.create_task(lane.acquire(claim("greedy"), 10.0)) for _ in range(3)]
    await pause()
    with pytest.raises(Overloaded, match="3 requests with 30 tokens wait"):
        await lane.acquire(claim("greedy"), 10.0)
    quiet = asyncio.create_task(lane.acquire(claim("quiet"), 10.0))
    await pause()
    assert isinstance(waiting[-1].exception(), LateRefusal)
    assert not quiet.done()
    assert lane.waiting == 3
    for task in (*waiting, quiet):
        task.cancel()


async def test_the_queue_is_bounded_in_tokens_too() -> None:
    """Few long prompts fill it as well as many short ones."""
    lane, _ = make_lane(slots=1, max_tokens=100)
    await lane.acquire(claim(), 10.0)
    waiting = asyncio.create_task(lane.acquire(claim(cost=90), 10.0))
    await pause()
    with pytest.raises(Overloaded, match="90 tokens wait"):
        await lane.acquire(claim(cost=20), 10.0)
    waiting.cancel()


async def test_whatever_its_size_one_claim_alone_starts() -> None:
    """More than the capacity is for the engine to refuse; it does not wait for ever."""
    lane, _ = make_lane(slots=2, tokens=10)
    assert await lane.acquire(claim(cost=1000, slots=5), 1.0) == 0.0


async def test_without_a_known_capacity_nothing_waits() -> None:
    """Workers that do not tell their slots are as they were without a queue."""
    lane, _ = make_lane(slots=None)
    for _ in range(50):
        await lane.acquire(claim(), 1.0)
    assert lane.running == 50


async def test_without_a_worker_the_lease_says_so() -> None:
    """Nobody waits for a fleet that is away: the next step answers UNAVAILABLE."""
    lane, _ = make_lane(workers=0)
    assert await lane.acquire(claim(), 1.0) == 0.0
