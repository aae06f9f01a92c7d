"""What an operator sees of each worker's KV cache, in figures and in `sidecache top`."""

import asyncio
from pathlib import Path

import pytest

from inference_svc.kv_events import BlocksStored
from sidecache.cli.top_workers import EventRates
from sidecache.client import SidecacheClient
from sidecache.v1 import cache_pb2
from tests.fixtures.stack import Stack, scripted_stack
from tests.integration.test_admission import top

PROMPT = "A long and winding question about the registry. " * 10
# Slow enough to be looked at, quick enough to be waited for.
SETTINGS = {"routing": {"load_interval_s": 0.02}}
BLOCKS = 64
WORKER = {"scripted": {"kv_blocks": BLOCKS}}


async def followed(operator: SidecacheClient, stack: Stack) -> list[cache_pb2.FollowedWorker]:
    """What the sidecar says of each worker once it knows all that they have told."""
    held = {worker.server.address: len(worker.ledger.held()) for worker in stack.workers}
    async with asyncio.timeout(10):
        while True:
            stats = (await operator.cache_stats()).stats
            if {each.address: each.blocks for each in stats.prefix_followed} == held:
                return sorted(stats.prefix_followed, key=lambda each: [*held].index(each.address))
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
async def test_each_worker_has_its_own_figures(tmp_path: Path, workers: int) -> None:
    """Blocks held and known, hit ratio, events and resyncs; of one worker alone as well."""
    fleet = [WORKER] * workers
    async with (
        scripted_stack(tmp_path, workers=fleet, router_=SETTINGS) as stack,
        stack.connect("operator") as operator,
    ):
        await stack.client.complete(text=PROMPT, max_tokens=2)
        answer = await stack.client.complete(text=f"{PROMPT}?", max_tokens=2)
        at = next(n for n in range(workers) if answer.worker == f"w{n + 1}")
        told = (await followed(operator, stack))[at]
        assert told.state == "following"
        assert (told.model, told.max_blocks) == ("scripted", BLOCKS)
        assert told.events >= told.blocks > 1
        assert (told.resyncs, told.changes_behind) == (0, 0)
        async with asyncio.timeout(5):
            while not (status := (await operator.workers())[at]).HasField("kv_blocks"):
                await asyncio.sleep(0.01)
        assert status.kv_blocks == BLOCKS
        assert 0 < status.cached_prompt_tokens < status.prompt_tokens
        lines = [line for line in (await top(stack)).splitlines() if status.worker in line]
        assert f"{told.blocks} of {BLOCKS}" in lines[0]
        share = 100 * status.cached_prompt_tokens / status.prompt_tokens
        assert f"{share:.0f} %" in lines[0]


async def test_a_liar_is_seen_by_its_resyncs(tmp_path: Path) -> None:
    """The worker that claims more than it can hold, and no other."""
    fleet = [WORKER] * 2
    async with (
        scripted_stack(tmp_path, workers=fleet, router_=SETTINGS) as stack,
        stack.connect("operator") as operator,
    ):
        await followed(operator, stack)
        stack.workers[1].ledger.record(BlocksStored(tuple(range(1, 2 * BLOCKS))))
        liar = stack.workers[1].server.address
        async with asyncio.timeout(10):
            while True:
                told = (await operator.cache_stats()).stats.prefix_followed
                resyncs = {each.address: each.resyncs for each in told}
                if resyncs.get(liar):
                    break
                await asyncio.sleep(0.01)
        assert resyncs[stack.workers[0].server.address] == 0


def test_rates_are_those_between_two_looks() -> None:
    """None at the first, and none across a worker that is followed anew."""
    now_s = [0.0]
    rates = EventRates(lambda: now_s[0])

    def look(events: int) -> dict[str, float]:
        return rates.look([cache_pb2.FollowedWorker(address="w1", events=events)])

    assert look(100) == {}
    now_s[0] = 2.0
    assert look(500) == {"w1": 200.0}
    now_s[0] = 3.0
    assert look(10) == {}
    now_s[0] = 4.0
    assert look(20) == {"w1": 10.0}
