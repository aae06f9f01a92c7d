"""A prompt that ends every worker it comes to is found out before it has ended them all."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecache.client import CacheControl
from sidecache.errors import Quarantined, SidecacheError, StreamInterrupted
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack
from tests.integration.test_router_flights import busy, eventually
from tests.integration.test_router_migration import events_of, ids_of, reference

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
WORKERS = 6
INNOCENT = 50


def fleet(after: int, tokens_per_s: float = 500.0) -> list[dict[str, Any]]:
    scripted = {
        "ttft_s": 0.05,
        "tokens_per_s": tokens_per_s,
        "poison": "poison",
        "poison_after_tokens": after,
    }
    return [{"scripted": scripted, "max_sequences": 64}] * WORKERS


def dead(stack: Stack) -> int:
    return sum(worker.engine._loaded().done() for worker in stack.workers)


async def ask(stack: Stack, number: int) -> bool:
    prompt = f"innocent {number}"
    events = await events_of(stack.client, prompt, max_tokens=20)
    return ids_of(events) == await reference(stack, prompt, 20)


@pytest.mark.parametrize("after", [0, 7])
async def test_one_poisonous_prompt_costs_three_workers_and_nobody_else(
    tmp_path: Path, after: int
) -> None:
    """Among fifty others, all of them whole and right; and it is refused from then on."""
    async with scripted_stack(tmp_path, workers=fleet(after), with_cache=False) as stack:
        expected = Quarantined if not after else StreamInterrupted
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(ask(stack, number)) for number in range(INNOCENT)]
            with pytest.raises(expected) as refusal:
                await events_of(stack.client, "poison", max_tokens=20)
        assert all(task.result() for task in asking)
        assert dead(stack) == 3
        if isinstance(refusal.value, StreamInterrupted):
            assert (refusal.value.why, refusal.value.offset) == ("quarantined", after)
        with pytest.raises(Quarantined) as again:
            await events_of(stack.client, "poison", max_tokens=20)
        assert again.value.retry_after_s > 0
        assert dead(stack) == 3


async def test_those_who_ran_beside_it_are_not_refused(tmp_path: Path) -> None:
    """Bad luck is forgotten with the next token; the same prompts are served again."""
    async with scripted_stack(tmp_path, workers=fleet(0), with_cache=False) as stack:
        async with asyncio.TaskGroup() as tasks:
            for number in range(12):
                tasks.create_task(ask(stack, number))
            with pytest.raises(Quarantined):
                await events_of(stack.client, "poison", max_tokens=20)
        assert all([await ask(stack, number) for number in range(12)])


async def test_another_tenant_is_not_told(tmp_path: Path) -> None:
    """A refusal is the tenant's own: nobody learns what others have asked."""
    async with (
        scripted_stack(tmp_path, workers=fleet(0), with_cache=False) as stack,
        stack.connect("umbrella") as other,
    ):
        with pytest.raises(Quarantined):
            await events_of(stack.client, "poison", max_tokens=20)
        assert dead(stack) == 3
        with pytest.raises(SidecacheError) as failure:
            await other.complete("poison", max_tokens=20)
        assert not isinstance(failure.value, Quarantined) or dead(stack) == WORKERS


async def test_many_copies_of_it_cost_few_workers(tmp_path: Path) -> None:
    """One copy is tried at a time, and its verdict is every copy's."""
    async with scripted_stack(tmp_path, workers=fleet(0), with_cache=False) as stack:
        copies = [stack.client.complete("poison", max_tokens=9, cache=BYPASS) for _ in range(8)]
        ends = await asyncio.gather(*copies, return_exceptions=True)
        assert all(isinstance(end, SidecacheError) for end in ends)
        assert dead(stack) < WORKERS


async def test_long_streams_make_room_for_a_trial(tmp_path: Path) -> None:
    """No worker is ever empty: one is emptied, by streams that go on elsewhere token for token."""
    async with scripted_stack(tmp_path, workers=fleet(0, 30.0), with_cache=False) as stack:
        async with asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(events_of(stack.client, f"long {number}", max_tokens=90))
                for number in range(18)
            ]
            await eventually(lambda: sum(busy(worker) for worker in stack.workers) == 18)
            with pytest.raises(Quarantined):
                await events_of(stack.client, "poison", max_tokens=20)
            assert not any(task.done() for task in asking)
        assert dead(stack) == 3
        for number, task in enumerate(asking):
            assert ids_of(task.result()) == await reference(stack, f"long {number}", 90)
