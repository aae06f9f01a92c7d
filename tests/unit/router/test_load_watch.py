"""Polls of how busy workers are: real servers, which answer or do not as they are told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from router import load_watch
from router.lease import Lease
from router.load_watch import LoadWatch
from router.settings import RoutingSettings
from router.worker import Worker
from sidecache.v1 import worker_pb2, worker_pb2_grpc
from tests.unit.router.fleet import MODEL

EPOCH = "e1"
# Of a slow worker's test, which is to tell twice this from four times this.
BOUND_S = 0.4


class Polled(worker_pb2_grpc.WorkerServiceServicer):
    """Says how busy it is while ``answers`` is set; ``worker`` is the router's idea of it."""

    worker: Worker

    def __init__(self) -> None:
        self.polls = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def GetLoad(self, request: Any, context: Any) -> worker_pb2.GetLoadResponse:
        self.polls += 1
        await self.answers.wait()
        return worker_pb2.GetLoadResponse(epoch=EPOCH, max_sequences=7)

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("a poll asks for nothing else")

    GetModel = Drain = SubscribeKvEvents = _unused


@asynccontextmanager
async def polled() -> AsyncIterator[Polled]:
    service, server = Polled(), grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        service.worker = Worker(address, channel, time.monotonic)
        service.worker.introduce(introduction(EPOCH))
        try:
            yield service
        finally:
            await server.stop(None)


def introduction(epoch: str) -> worker_pb2.GetModelResponse:
    facts = worker_pb2.GetModelResponse()
    facts.CopyFrom(MODEL)
    facts.epoch = epoch
    return facts


def make_watch(*services: Polled, timeout_s: float = 0.05) -> LoadWatch:
    settings = RoutingSettings(load_interval_s=0.01, load_timeout_s=timeout_s)
    return LoadWatch(lambda: [one.worker for one in services], settings, time.monotonic)


@asynccontextmanager
async def watching(count: int, timeout_s: float = 0.05) -> AsyncIterator[list[Polled]]:
    """So many workers, all of them polled; whoever is taken off the list has left."""
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(polled()) for _ in range(count)]
        settings = RoutingSettings(load_interval_s=0.01, load_timeout_s=timeout_s)
        watch = LoadWatch(lambda: [one.worker for one in services], settings, time.monotonic)
        running = asyncio.create_task(watch.run())
        try:
            yield services
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.001)


async def until_polled(service: Polled, more: int = 3) -> None:
    enough = service.polls + more
    await until(lambda: service.polls >= enough)


async def test_who_answers_no_poll_gets_nothing_new_until_it_answers() -> None:
    """An idle worker owes no words: nothing else tells that it has stopped."""
    async with watching(2) as (stopped, other):
        await until(lambda: stopped.worker.load.slots == 7)
        stopped.answers.clear()
        await until(lambda: stopped.worker.is_hushed)
        assert stopped.worker.load.slots == 0
        await until(lambda: not other.worker.is_hushed)
        stopped.answers.set()
        await until(lambda: not stopped.worker.is_hushed)
        await until(lambda: stopped.worker.load.slots == 7)


async def test_one_that_hangs_keeps_no_other_from_being_asked() -> None:
    """Each has its own patience; a round of all would go at the pace of the worst."""
    async with watching(2, timeout_s=60.0) as (stopped, other):
        stopped.answers.clear()
        await until_polled(stopped, 1)
        await until_polled(other)


async def test_one_that_leaves_while_it_is_asked_ends_nothing() -> None:
    """Its channel is closed under the call; the others are asked on."""
    async with watching(2, timeout_s=60.0) as services:
        gone, other = services
        gone.answers.clear()
        await until_polled(gone, 1)
        services.remove(gone)
        await gone.worker.channel.close()
        await until_polled(other)


async def test_one_that_leaves_before_its_turn_is_not_asked() -> None:
    """Only so many are asked at once; the last of many may be gone when it is his turn."""
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(polled()) for _ in range(load_watch._AT_ONCE + 1)
        ]
        watch = make_watch(*services, timeout_s=60.0)
        for one in services:
            one.answers.clear()
        *asked, last = [asyncio.create_task(watch.ask(one.worker)) for one in services]
        await until(lambda: sum(one.polls for one in services) == load_watch._AT_ONCE)
        await services[-1].worker.channel.close()
        services[0].answers.set()
        async with asyncio.timeout(10):
            await last
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_slow_one_is_heard_and_then_waited_for() -> None:
    """Slower than the bound: once it is taken for stopped, and from then on it has more time."""
    async with polled() as slow:
        slow.answers.clear()
        watch = make_watch(slow, timeout_s=BOUND_S)
        await watch.ask(slow.worker)
        hushed = [slow.worker.is_hushed]
        for _ in range(2):
            await late(watch, slow)
            hushed.append(slow.worker.is_hushed)
        assert hushed == [True, False, False]
        assert slow.worker.load.slots == 7


async def late(watch: LoadWatch, service: Polled) -> None:
    """A poll whose answer takes twice the bound."""
    service.answers.clear()
    polls = service.polls
    asking = asyncio.create_task(watch.ask(service.worker))
    await until(lambda: service.polls > polls)
    asyncio.get_running_loop().call_later(2 * BOUND_S, service.answers.set)
    await asking


async def test_one_that_speaks_is_not_taken_for_stopped() -> None:
    """Words on a stream are life, however long the answer to a poll takes."""
    async with polled() as busy:
        busy.answers.clear()
        lease = Lease(busy.worker)
        asking = asyncio.create_task(make_watch(busy).ask(busy.worker))
        await asyncio.sleep(0)  # it is asked by then
        busy.worker.heard()
        await asking
        assert not busy.worker.is_hushed
        lease.release()


async def test_one_that_introduces_itself_anew_starts_well() -> None:
    """It has answered just now."""
    async with polled() as stopped:
        stopped.answers.clear()
        await make_watch(stopped).ask(stopped.worker)
        assert stopped.worker.is_hushed
        stopped.worker.introduce(introduction(EPOCH))
        assert not stopped.worker.is_hushed
