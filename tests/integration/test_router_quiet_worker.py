"""A worker that stops as a whole is left early; one that is only slow is left alone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chaos.process import ServiceProcess
from observability.channel import open_channel
from observability.settings import ChannelSettings
from router.background import in_background
from router.dispatch import Dispatcher
from router.model import ServedModel
from router.pool import WorkerPool
from router.routing.choice import make_policy
from router.settings import PoolSettings, RoutingSettings
from router.worker import State, Worker
from sidecache.client import CacheControl, SidecacheClient
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import quiet_telemetry, scripted_stack, scripted_worker
from tests.integration.test_router_migration import ids_of, moves_of, reference
from tests.unit.router.fleet import chat, make_prompt

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
# A stream's own patience, far beyond what is waited for here.
PATIENT = {"token_silence_s": 30.0, "worker_answer_s": 30.0, "worker_silence_s": 30.0}
# Far sooner than the defaults, so that slowness has every chance to be mistaken.
EAGER = {"quiet_s": 0.05, "max_quiet_s": 0.1}
# A stopped process answers no pings either; here they are to tell nothing.
UNPINGED = {"keepalive_timeout_s": 30.0}
SPREAD = {"policy": "round_robin"}


class Asking:
    """Some streams under way; ``begun`` once each has its first token."""

    def __init__(self, client: SidecacheClient, count: int, tokens: int, **more: Any) -> None:
        self.begun = asyncio.Event()
        self._waiting = count
        self._tasks = [
            asyncio.create_task(self._ask(client, f"prompt {number}", tokens, more))
            for number in range(count)
        ]

    async def _ask(
        self, client: SidecacheClient, prompt: str, tokens: int, more: dict[str, Any]
    ) -> list[pb.GenerateResponse]:
        events: list[pb.GenerateResponse] = []
        async with client.generate(prompt, cache=BYPASS, max_tokens=tokens, **more) as stream:
            async for event in stream:
                if event.HasField("delta") and not ids_of(events):
                    self._waiting -= 1
                events.append(event)
                if not self._waiting:
                    self.begun.set()
        return events

    async def all(self, within_s: float) -> Sequence[list[pb.GenerateResponse]]:
        """What each of them got."""
        async with asyncio.timeout(within_s):
            return await asyncio.gather(*self._tasks)


async def test_the_streams_of_a_stopped_worker_go_on_elsewhere_together(tmp_path: Path) -> None:
    """Long before the patience of any one of them is over; token for token."""
    pace = {"name": "stopped", "engine": "scripted", "scripted__tokens_per_s": "50"}
    async with (
        ServiceProcess.start("inference_svc", tmp_path, pace) as stopped,
        scripted_worker("w1", scripted={"tokens_per_s": 50.0}) as other,
    ):
        settings = {
            "limits": PATIENT,
            "routing": SPREAD,
            "workers": [stopped.address, other.server.address],
            "channels": UNPINGED,
        }
        async with scripted_stack(tmp_path, workers=[], with_cache=False, router_=settings) as st:
            asking = Asking(st.client, 6, 100)
            await asking.begun.wait()
            stopped.hang()
            moved = 0
            for number, events in enumerate(await asking.all(within_s=20.0)):
                assert ids_of(events) == await reference(st, f"prompt {number}", 100)
                moved += [move[:2] for move in moves_of(events)] == [("stopped", "w1")]
            assert moved == 3
            # Whoever asks now is not sent there, and waits for nothing.
            late = await Asking(st.client, 4, 3).all(within_s=5.0)
            assert not any(moves_of(events) for events in late)
            stopped.resume()


async def test_who_cannot_go_on_exactly_waits_for_the_worker_to_come_back(tmp_path: Path) -> None:
    """Being moved would end a sampled stream; a stopped worker may yet go on."""
    pace = {"name": "stopped", "engine": "scripted", "scripted__tokens_per_s": "50"}
    async with (
        ServiceProcess.start("inference_svc", tmp_path, pace) as stopped,
        scripted_worker("w1", scripted={"tokens_per_s": 50.0}) as other,
    ):
        settings = {
            "limits": PATIENT,
            "routing": SPREAD,
            "workers": [stopped.address, other.server.address],
            "quiet": EAGER | {"answer_s": 0.1},
            "channels": UNPINGED,
        }
        async with scripted_stack(tmp_path, workers=[], with_cache=False, router_=settings) as st:
            greedy = Asking(st.client, 2, 100)
            # One kind after the other: each is spread over both workers by itself.
            await greedy.begun.wait()
            sampled = Asking(st.client, 2, 100, temperature=0.7, seed=3)
            await sampled.begun.wait()
            stopped.hang()
            assert sum(len(moves_of(events)) for events in await greedy.all(within_s=20.0)) >= 1
            stopped.resume()
            for events in await sampled.all(within_s=20.0):
                assert len(ids_of(events)) == 100
                assert moves_of(events) == []


async def test_an_idle_worker_that_stops_gets_nothing_until_it_goes_on(tmp_path: Path) -> None:
    """It owes no words, so nobody misses any; its polls tell, before a stream has gone there."""
    async with (
        ServiceProcess.start("inference_svc", tmp_path, {"engine": "scripted"}) as stopped,
        scripted_worker("w1") as other,
        pooled([stopped.address, other.server.address]) as pool,
    ):
        idle = next(one for one in pool.workers if one.address == stopped.address)
        model = pool.model("")
        assert {leased(pool, model) for _ in range(4)} == {idle, *pool.workers}
        stopped.hang()
        others = [one for one in pool.workers if one is not idle]
        await until(lambda: idle.is_hushed and not others[0].is_hushed)
        assert idle.state is State.READY  # no verdict: where no other is, it is still asked
        assert idle not in {leased(pool, model) for _ in range(4)}
        with pool.lease(model, avoid=others) as lease:
            assert lease.worker is idle
        stopped.resume()
        await until(lambda: not idle.is_hushed)
        assert idle in {leased(pool, model) for _ in range(4)}


@asynccontextmanager
async def pooled(addresses: list[str]) -> AsyncIterator[WorkerPool]:
    """The router's workers as it knows them; pings tell it nothing."""
    telemetry = quiet_telemetry("sidecache-router")
    routing = RoutingSettings(policy="round_robin", load_interval_s=0.05, load_timeout_s=0.6)
    channels = ChannelSettings(keepalive_timeout_s=UNPINGED["keepalive_timeout_s"])
    clock = asyncio.get_running_loop().time
    pool = WorkerPool(
        addresses,
        PoolSettings(),
        routing,
        Dispatcher(make_policy(routing.policy), routing, clock),
        lambda address: open_channel(address, telemetry, channels),
        clock,
    )
    async with in_background(pool.run(), "pool"):
        await pool.wait_for_first_contact()
        yield pool
    await telemetry.aclose()


def leased(pool: WorkerPool, model: ServedModel) -> Worker:
    """Whom a stream would be sent to now."""
    prompt = make_prompt(chat("hello"))
    with pool.lease(model, prompt=prompt) as lease:
        return lease.worker


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_slow_worker_that_answers_keeps_its_streams(tmp_path: Path) -> None:
    """Seven tokens, each many times as late as what is quiet: asked, alive, left alone."""
    slow = {"scripted": {"tokens_per_s": 3.0}}
    settings = {"limits": PATIENT, "quiet": EAGER, "routing": SPREAD}
    async with scripted_stack(
        tmp_path, workers=[slow, {}], with_cache=False, router_=settings
    ) as stack:
        for events in await Asking(stack.client, 4, 7).all(within_s=20.0):
            assert len(ids_of(events)) == 7
            assert moves_of(events) == []


async def test_a_long_prefill_is_no_silence(tmp_path: Path) -> None:
    """A first token that takes many times what is quiet is waited for."""
    slow = {"scripted": {"ttft_s": 1.0}, "progress_interval_s": 5.0}
    settings = {"limits": PATIENT, "quiet": EAGER, "routing": SPREAD}
    async with scripted_stack(
        tmp_path, workers=[slow, {}], with_cache=False, router_=settings
    ) as stack:
        for events in await Asking(stack.client, 4, 3).all(within_s=20.0):
            assert moves_of(events) == []


async def test_a_lone_worker_that_stops_is_waited_for(tmp_path: Path) -> None:
    """With nowhere to go its streams wait as long as ever, and it comes back."""
    pace = {"name": "stopped", "engine": "scripted", "scripted__tokens_per_s": "50"}
    async with ServiceProcess.start("inference_svc", tmp_path, pace) as stopped:
        settings = {
            "limits": PATIENT | {"migration_wait_s": 0.0},
            "workers": [stopped.address],
            "quiet": EAGER | {"answer_s": 0.1},
            "channels": UNPINGED,
        }
        async with scripted_stack(tmp_path, workers=[], with_cache=False, router_=settings) as st:
            asking = Asking(st.client, 2, 60)
            await asking.begun.wait()
            stopped.hang()
            assert await stopped.is_hung()
            # Several times what it takes to give a worker up: nothing else tells that it passed.
            await asyncio.sleep(1.0)
            stopped.resume()
            assert [moves_of(events) for events in await asking.all(within_s=20.0)] == [[], []]
