"""A worker that is late with its first token, and a second one that begins beside it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecache.client import CacheControl
from sidecache.errors import NoHealthyWorker, SidecacheError
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack
from tests.integration.test_router_flights import busy, eventually
from tests.integration.test_router_migration import events_of, ids_of, moves_of, reference

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
LATE, QUICK = {"scripted": {"ttft_s": 5.0}}, {"scripted": {"ttft_s": 0.0}}
SOON: dict[str, Any] = {"enabled": True, "after_s": 0.05}


def fleet(folder: Path, workers: list[dict[str, Any]], **more: Any) -> Any:
    settings = {"hedge": SOON, "routing": {"policy": "round_robin"}} | more
    return scripted_stack(folder, workers=workers, with_cache=False, router_=settings)


async def idle(stack: Stack) -> None:
    """Return when no engine has anything left to do."""
    await eventually(lambda: not any(busy(worker) for worker in stack.workers), within_s=2)


async def test_the_second_worker_answers_for_a_late_one(tmp_path: Path) -> None:
    """The whole answer, once; the client is told who goes on; the late one is let go at once."""
    async with fleet(tmp_path, [LATE, QUICK]) as stack:
        async with asyncio.timeout(4.0):
            # In turn: one of the two falls to the late worker.
            answers = [await events_of(stack.client, f"hello {n}", max_tokens=20) for n in (0, 1)]
        for number, events in enumerate(answers):
            assert ids_of(events) == await reference(stack, f"hello {number}", 20)
            assert sum(event.HasField("finished") for event in events) == 1
        first = {events[0].started.worker: moves_of(events) for events in answers}
        assert first == {"w1": [("w1", "w2", 0)], "w2": []}
        await idle(stack)


async def test_a_first_worker_that_is_sooner_after_all_is_heard_alone(tmp_path: Path) -> None:
    """The second one stops at once, and nobody hears of it."""
    # Long enough that the second one would have its first token while the first one speaks.
    late = {"scripted": {"ttft_s": 0.3, "tokens_per_s": 50.0}}
    async with fleet(tmp_path, [late, late]) as stack:
        asking = asyncio.create_task(events_of(stack.client, "hello", max_tokens=40))
        await eventually(lambda: all(busy(worker) for worker in stack.workers))
        events = await asking
        assert ids_of(events) == await reference(stack, "hello", 40)
        assert moves_of(events) == []
        await idle(stack)


async def test_what_cannot_be_continued_may_be_hedged(tmp_path: Path) -> None:
    """Before the first token nothing is continued: sampled ones, and several choices."""
    async with fleet(tmp_path, [LATE, QUICK]) as stack, asyncio.timeout(4.0):
        for _ in range(2):
            answer = await stack.client.complete(
                "hello", max_tokens=9, temperature=0.8, seed=5, n=2, cache=BYPASS
            )
            assert len(answer.token_ids) == 9
        await idle(stack)


async def test_without_a_budget_nobody_begins_beside(tmp_path: Path) -> None:
    """One hedge saved up, and a share of nothing: the second late request waits."""
    late = {"scripted": {"ttft_s": 0.5}}
    settings = SOON | {"share": 0.0, "reserve": 1.0}
    async with fleet(tmp_path, [late, late], hedge=settings) as stack:
        asking = asyncio.create_task(events_of(stack.client, "one", max_tokens=3))
        await eventually(lambda: all(busy(worker) for worker in stack.workers))
        await asking
        asking = asyncio.create_task(events_of(stack.client, "two", max_tokens=3))
        most = 0
        while not asking.done():
            most = max(most, sum(busy(worker) for worker in stack.workers))
            await asyncio.sleep(0.005)
        assert most == 1


@pytest.mark.parametrize("ahead", [0, 4])
async def test_a_full_fleet_is_not_hedged(tmp_path: Path, ahead: int) -> None:
    """Two slots and two requests: a second worker's slot is not taken from anybody."""
    late = {"scripted": {"ttft_s": 0.5}, "max_sequences": 1}
    async with fleet(tmp_path, [late, late], admission={"ahead": ahead}) as stack:
        asking = [
            asyncio.create_task(events_of(stack.client, prompt, max_tokens=3)) for prompt in "ab"
        ]
        while not all(task.done() for task in asking):
            for worker in stack.workers:
                assert worker.engine.load_figures().waiting_sequences == 0
            await asyncio.sleep(0.005)
        assert all([len(ids_of(await task)) == 3 for task in asking])


async def test_a_second_worker_takes_over_when_the_first_is_lost(tmp_path: Path) -> None:
    """It had begun already, so nothing begins a third time."""
    dying = {"scripted": {"ttft_s": 0.2, "die_after_tokens": 0}}
    async with fleet(tmp_path, [dying, {"scripted": {"ttft_s": 0.5}}]) as stack:
        for number in range(2):
            events = await events_of(stack.client, f"hello {number}", max_tokens=9)
            assert ids_of(events) == await reference(stack, f"hello {number}", 9)
        await eventually(lambda: not busy(stack.workers[1]))


async def test_a_second_worker_that_fails_leaves_the_first_alone(tmp_path: Path) -> None:
    """The first one's answer comes as if nothing had been."""
    dying = {"scripted": {"ttft_s": 0.1, "die_after_tokens": 0}}
    slow = {"scripted": {"ttft_s": 0.6}}
    async with fleet(tmp_path, [slow, dying]) as stack:
        events = await events_of(stack.client, "hello", max_tokens=9)
        assert ids_of(events) == await reference(stack, "hello", 9)


async def test_a_client_that_leaves_frees_both(tmp_path: Path) -> None:
    """Nothing of the race goes on without him."""
    async with fleet(tmp_path, [LATE, LATE]) as stack:
        asking = asyncio.create_task(events_of(stack.client, "hello", max_tokens=9))
        await eventually(lambda: all(busy(worker) for worker in stack.workers))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await idle(stack)


async def test_both_lost_is_an_error_like_any_other(tmp_path: Path) -> None:
    """No hang, and no third try beyond the bound."""
    dying = {"scripted": {"ttft_s": 0.2, "die_after_tokens": 0}}
    async with fleet(tmp_path, [dying, dying]) as stack, asyncio.timeout(5.0):
        with pytest.raises(SidecacheError) as failure:
            await events_of(stack.client, "hello", max_tokens=9)
        assert failure.value.code.name == NoHealthyWorker("").code.name


async def test_a_second_worker_that_won_and_is_lost_hands_the_stream_on(tmp_path: Path) -> None:
    """What it had said stays said; a third worker goes on from there."""
    dying = {"scripted": {"ttft_s": 0.0, "die_after_tokens": 5}}
    async with fleet(tmp_path, [dying, LATE, QUICK]) as stack, asyncio.timeout(4.0):
        events = await events_of(stack.client, "hello", max_tokens=20)
        assert ids_of(events) == await reference(stack, "hello", 20)
        assert moves_of(events) == [("w2", "w1", 0), ("w1", "w3", 5)]
        await idle(stack)
