"""What a client sees when a part behind the router fails."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_token
from sidecache.client import CacheControl, SidecacheClient, Source
from sidecache.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    NoHealthyWorker,
    NotCached,
    NotFound,
    Overloaded,
    StreamInterrupted,
    Unavailable,
)
from sidecache.stream_events import kind_of
from sidecache.v1 import cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.bare_cache import bare_cache
from tests.fixtures.stack import Stack, Worker, cache_sidecar, scripted_stack

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
SLOW = {"scripted": {"ttft_s": 0.05, "tokens_per_s": 50.0}}


async def eventually(is_so: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for another task's doing, bounded."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.001)


async def expected(client: SidecacheClient, prompt: str, count: int) -> list[int]:
    seed = prompt_seed(await client.tokenize(prompt))
    return [scripted_token(seed, position) for position in range(count)]


def busy(worker: Worker) -> int:
    return worker.engine.load_figures().running_sequences


async def test_a_worker_that_dies_before_its_first_token_is_replaced(tmp_path: Path) -> None:
    """The stream starts once, tells of the move at offset 0, and is whole and right."""
    fleet = [{"scripted": {"die_after_tokens": 0}}, {}]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        async with stack.client.generate("hello", max_tokens=30) as stream:
            events = [event async for event in stream]
        kinds = [kind_of(event) for event in events]
        assert kinds.count("started") == 1
        moved = [event.migrated for event in events if event.HasField("migrated")]
        assert [(m.from_worker, m.to_worker, m.offset) for m in moved] == [("w1", "w2", 0)]
        ids = [i for event in events for i in event.delta.token_ids]
        assert ids == await expected(stack.client, "hello", 30)


async def test_without_another_worker_the_failure_is_told(tmp_path: Path) -> None:
    """The only worker's death before a token is UNAVAILABLE, and in good time."""
    fleet = [{"scripted": {"die_after_tokens": 0}}]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        started = time.perf_counter()
        with pytest.raises(EngineFailed):
            await stack.client.complete("hello", max_tokens=30)
        assert time.perf_counter() - started < 2
        await eventually(lambda: busy(stack.workers[0]) == 0)


async def test_a_broken_stream_is_never_stored(tmp_path: Path) -> None:
    """After an ABORTED stream the cache knows nothing of it."""
    fleet = [{"scripted": {"die_after_tokens": 5, "tokens_per_s": 500.0}}]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        with pytest.raises(StreamInterrupted):
            await stack.client.complete("hello", max_tokens=30)
        async with stack.connect("operator") as operator:
            stats = await operator.cache_stats()
        assert stats.reachable
        assert stats.stats.entries == 0
        with pytest.raises(NotCached):
            only = CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
            await stack.client.complete("hello", max_tokens=30, cache=only)


async def test_a_silent_worker_is_given_up(tmp_path: Path) -> None:
    """A worker that is connected and says nothing is replaced before the first token."""
    fleet: list[dict[str, Any]] = [
        {"scripted": {"hang_after_tokens": 0}, "progress_interval_s": 60.0},
        {},
    ]
    settings = {"limits": {"worker_silence_s": 0.2}}
    async with scripted_stack(tmp_path, workers=fleet, router_=settings) as stack:
        answer = await stack.client.complete("hello", max_tokens=10)
        assert answer.token_ids == await expected(stack.client, "hello", 10)
        await eventually(lambda: busy(stack.workers[0]) == 0)


async def test_full_workers_pass_a_request_on_and_then_refuse_it(tmp_path: Path) -> None:
    """A full queue is no failure: the next worker gets the request, the last refusal is told."""
    tiny = {"max_sequences": 1, "max_waiting": 0, **SLOW}
    # Admission lets in more than the workers have slots for, as it may by a stale figure.
    more = {"admission": {"ahead": 2}}
    async with scripted_stack(tmp_path, workers=[tiny, tiny], router_=more) as stack:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(stack.client.complete(f"{n}", max_tokens=30, cache=BYPASS))
                for n in range(2)
            ]
            await eventually(lambda: all(busy(worker) for worker in stack.workers))
            with pytest.raises(Overloaded) as refused:
                await stack.client.complete("3", max_tokens=30, cache=BYPASS)
        assert refused.value.retry_after_s > 0
        assert {task.result().worker for task in running} == {"w1", "w2"}


async def test_the_router_itself_refuses_above_its_bound(tmp_path: Path) -> None:
    """Admission: the bound holds, and the places come back."""
    settings = {"admission": {"max_streams": 2}}
    async with scripted_stack(tmp_path, workers=[SLOW], router_=settings) as stack:
        async with asyncio.TaskGroup() as tasks:
            for n in range(2):
                tasks.create_task(stack.client.complete(f"{n}", max_tokens=30, cache=BYPASS))
            await eventually(lambda: busy(stack.workers[0]) == 2)
            with pytest.raises(Overloaded, match="bound of 2 streams"):
                await stack.client.complete("3", max_tokens=30)
        assert (await stack.client.complete("4", max_tokens=2)).text


async def test_no_worker_at_all(tmp_path: Path) -> None:
    """A router that has never seen a worker is UNAVAILABLE, not NOT_FOUND."""
    async with scripted_stack(tmp_path, workers=[]) as stack:
        with pytest.raises(NoHealthyWorker):
            await stack.client.complete("hello")


async def test_the_cache_answers_while_every_worker_is_gone(tmp_path: Path) -> None:
    """A model stays known without its workers, and stored answers are still served."""
    async with scripted_stack(tmp_path) as stack:
        await stack.client.complete("hello", max_tokens=8)
        async with asyncio.timeout(5):
            while (await stack.client.complete("hello", max_tokens=8)).source != Source.EXACT:
                pass
        await stack.workers[0].server.drain(0)
        await _until_unready(stack)
        assert (await stack.client.complete("hello", max_tokens=8)).source is Source.EXACT
        with pytest.raises(Unavailable):
            await stack.client.complete("something new", max_tokens=8)


async def _until_unready(stack: Stack) -> None:
    async with asyncio.timeout(5):
        while any(model.ready_workers for model in await stack.client.models()):
            await asyncio.sleep(0.005)


class HungCache(cache_pb2_grpc.CacheServiceServicer):
    """A sidecar that takes calls and never answers them."""

    def __init__(self) -> None:
        self.lookups = 0

    async def Lookup(self, request: Any, context: Any) -> Any:
        self.lookups += 1
        await self._hang(request, context)

    async def _hang(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    Store = Invalidate = Feedback = SetWorkers = GetStats = Explain = _hang
    HoldFlights = AwaitFlight = _hang


async def test_a_hung_sidecar_costs_the_deadline_and_soon_nothing(tmp_path: Path) -> None:
    """Every answer comes; after failures in a row the sidecar is not asked any more."""
    servicer = HungCache()
    async with bare_cache(servicer) as address:
        settings = {
            "cache": address,
            "lookup": {"lookup_timeout_s": 0.05, "failures_to_open": 3, "open_s": 60.0},
        }
        async with scripted_stack(tmp_path, with_cache=False, router_=settings) as stack:
            for n in range(10):
                answer = await stack.client.complete(f"{n}", max_tokens=4)
                assert answer.source is Source.ENGINE
                assert answer.ttft_s is not None
                assert answer.ttft_s < 0.05 + 1.0
        assert servicer.lookups == 3


async def test_a_dead_sidecar_costs_nothing_and_is_found_again(tmp_path: Path) -> None:
    """Its socket gone, requests go on; once it is back, hits are back."""
    settings = {"lookup": {"open_s": 0.05}}
    async with contextlib.AsyncExitStack() as sidecar:
        server = await sidecar.enter_async_context(cache_sidecar(tmp_path))
        settings["cache"] = server.address  # type: ignore[assignment]
        async with scripted_stack(tmp_path, with_cache=False, router_=settings) as stack:
            await stack.client.complete("before", max_tokens=4)
            await sidecar.aclose()
            for n in range(20):
                answer = await stack.client.complete(f"{n}", max_tokens=4)
                assert answer.source is Source.ENGINE
            async with cache_sidecar(tmp_path), asyncio.timeout(10):
                while True:
                    answer = await stack.client.complete("after", max_tokens=4)
                    if answer.source is Source.EXACT:
                        break
                    await asyncio.sleep(0.01)


async def test_cancel_frees_the_engine_slot(tmp_path: Path) -> None:
    """From a client's cancel through router and worker to a free slot: p99 within 100 ms."""
    async with scripted_stack(tmp_path, workers=[SLOW]) as stack:
        engine = stack.workers[0]
        seconds: list[float] = []
        for _ in range(100):
            async with stack.client.generate("hello", max_tokens=500, cache=BYPASS) as stream:
                async for event in stream:
                    if event.HasField("delta"):
                        break
                assert busy(engine) == 1
                cancelled = time.perf_counter()
            await eventually(lambda: busy(engine) == 0)
            seconds.append(time.perf_counter() - cancelled)
        assert sorted(seconds)[98] <= 0.1


async def test_a_deadline_reaches_the_engine(tmp_path: Path) -> None:
    """An expired stream is DEADLINE_EXCEEDED for the client and leaves the engine."""
    async with scripted_stack(tmp_path, workers=[SLOW]) as stack:
        with pytest.raises(DeadlineExceeded):
            await stack.client.complete("hello", max_tokens=500, timeout_s=0.3)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=0.2)


async def test_a_deadline_that_is_over_already_does_nothing(tmp_path: Path) -> None:
    """Nothing goes on being generated for a caller whose time is up."""
    async with scripted_stack(tmp_path) as stack:
        with pytest.raises((DeadlineExceeded, Cancelled)):
            await stack.client.complete("hello", timeout_s=0.0)
        # The router may have heard of it before the client gave up.
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=0.2)


async def test_a_reader_that_stalls_is_cut_off(tmp_path: Path) -> None:
    """A client that reads nothing frees its engine slot after the stall time."""
    settings = {"limits": {"reader_stall_s": 0.3, "max_prompt_bytes": 1 << 20}}
    # Large messages, so that the buffers on the way are soon full.
    scripted = {"context_length": 2_000_000, "burst": 512}
    fleet = [{"scripted": scripted, "coalesce_max_tokens": 512}]
    async with (
        scripted_stack(tmp_path, workers=fleet, router_=settings) as stack,
        stack.client.generate("hello", max_tokens=1_000_000, cache=BYPASS) as stream,
    ):
        # The client opens the stream and then takes nothing more from it.
        await anext(aiter(stream))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=10)


async def test_a_cordoned_worker_gets_no_new_streams(tmp_path: Path) -> None:
    """Cordon and uncordon by an admin key; running streams are left alone."""
    async with (
        scripted_stack(tmp_path, workers=[{}, {}]) as stack,
        stack.connect("operator") as operator,
    ):
        assert (await operator.set_cordon("w1", cordoned=True)).worker == "w1"
        answers = [await stack.client.complete(f"{n}", max_tokens=2) for n in range(6)]
        assert {answer.worker for answer in answers} == {"w2"}
        await operator.set_cordon("w1", cordoned=False)
        answers = [await stack.client.complete(f"{n}!", max_tokens=2) for n in range(6)]
        assert {answer.worker for answer in answers} == {"w1", "w2"}
        with pytest.raises(NotFound, match="there are: w1, w2"):
            await operator.set_cordon("w9", cordoned=True)


async def test_a_worker_that_comes_back_is_used_again(tmp_path: Path) -> None:
    """A worker found dead is asked again when its health says SERVING."""
    async with scripted_stack(tmp_path, workers=[{}, {}]) as stack:
        first = stack.workers[0].server
        first.set_serving(False)
        await _until_ready(stack, 1)
        answers = [await stack.client.complete(f"{n}", max_tokens=2) for n in range(4)]
        assert {answer.worker for answer in answers} == {"w2"}
        first.set_serving(True)
        await _until_ready(stack, 2)
        answers = [await stack.client.complete(f"{n}!", max_tokens=2) for n in range(4)]
        assert {answer.worker for answer in answers} == {"w1", "w2"}


async def _until_ready(stack: Stack, count: int) -> None:
    async with asyncio.timeout(5):
        while [model.ready_workers for model in await stack.client.models()] != [count]:
            await asyncio.sleep(0.005)


async def _all(calls: list[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*calls)


async def test_the_load_is_spread(tmp_path: Path) -> None:
    """Least loaded: concurrent streams share the workers evenly."""
    settings = {"routing": {"policy": "least_loaded"}}
    async with scripted_stack(tmp_path, workers=[SLOW] * 3, router_=settings) as stack:
        answers = await _all(
            [stack.client.complete(f"{n}", max_tokens=5, cache=BYPASS) for n in range(30)]
        )
        counts = [sum(a.worker == f"w{n}" for a in answers) for n in (1, 2, 3)]
        assert counts == [10, 10, 10]
