"""Asking the workers how busy they are, while they come and go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.load_watch import LoadWatch
from router.settings import RoutingSettings
from router.worker import Worker
from sidecache.v1 import worker_pb2, worker_pb2_grpc
from tests.unit.router.fleet import Clock

SOON = RoutingSettings(load_interval_s=0.01, load_timeout_s=30.0)


class Silent(worker_pb2_grpc.WorkerServiceServicer):
    """Takes questions, and answers none until it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def GetLoad(
        self, request: worker_pb2.GetLoadRequest, context: Any
    ) -> worker_pb2.GetLoadResponse:
        self.asked += 1
        await self.may_answer.wait()
        return worker_pb2.GetLoadResponse(max_sequences=7)

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("the load watch asks for nothing else")

    GetModel = Drain = SubscribeKvEvents = _unused


@asynccontextmanager
async def listening(servicer: Silent) -> AsyncIterator[str]:
    """Its server's address."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_worker_that_leaves_while_it_is_asked_ends_no_watch() -> None:
    """Its channel is closed under the question; the others are asked on."""
    servicer = Silent()
    async with listening(servicer) as address:
        # With the wait for a slot: more workers than are asked at once.
        workers = [Worker(address, grpc.aio.insecure_channel(address), Clock()) for _ in range(20)]
        known = list(workers)
        watch = LoadWatch(lambda: known, SOON, Clock())
        watching = asyncio.create_task(watch.run())
        try:
            await until(lambda: servicer.asked == 16)
            known[:] = workers[1:19]
            for worker in (workers[0], workers[19]):
                await worker.channel.close(grace=None)
            servicer.may_answer.set()
            await until(lambda: watching.done() or all(w.load.slots == 7 for w in known))
            assert not watching.done()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            for worker in workers:
                await worker.channel.close(grace=None)
