"""Workers that leave in good order, and workers that die with their last word."""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.fixtures.stack import scripted_stack
from tests.integration.test_router_migration import events_of, ids_of, moves_of, reference

PACED = {"scripted": {"tokens_per_s": 100.0}}


async def test_a_drain_that_outlasts_its_grace_moves_the_streams(tmp_path: Path) -> None:
    """What still runs when the grace is over goes on elsewhere, token for token."""
    async with scripted_stack(tmp_path, workers=[PACED, PACED], with_cache=False) as stack:
        asking = asyncio.create_task(events_of(stack.client, "hello", max_tokens=80))
        async with asyncio.timeout(5):
            while not any(w.engine.load_figures().running_sequences for w in stack.workers):
                await asyncio.sleep(0.005)
        busy = next(w for w in stack.workers if w.engine.load_figures().running_sequences)
        await asyncio.sleep(0.2)  # tokens, so that the move is one in mid-stream
        await busy.server.drain(0.1)
        events = await asking
        assert ids_of(events) == await reference(stack, "hello", 80)
        assert len(moves_of(events)) == 1


async def test_the_drain_call_is_heard_by_routers(tmp_path: Path) -> None:
    """No router asks a worker again that an operator drained; what runs there ends there."""
    async with scripted_stack(tmp_path, workers=[PACED, PACED], with_cache=False) as stack:
        asking = asyncio.create_task(events_of(stack.client, "hello", max_tokens=80))
        async with asyncio.timeout(5):
            while not any(w.engine.load_figures().running_sequences for w in stack.workers):
                await asyncio.sleep(0.005)
        busy = next(w for w in stack.workers if w.engine.load_figures().running_sequences)
        async with grpc.aio.insecure_channel(busy.server.address) as channel:
            drain = asyncio.ensure_future(
                worker_pb2_grpc.WorkerServiceStub(channel).Drain(worker_pb2.DrainRequest())
            )
            async with asyncio.timeout(5):
                while (await stack.client.models())[0].ready_workers != 1:
                    await asyncio.sleep(0.005)
            assert moves_of(await asking) == []
            assert (await drain).aborted_streams == 0
        for number in range(4):
            await stack.client.complete(f"after {number}", max_tokens=1)
        assert busy.engine.load_figures().running_sequences == 0


class LastWord(inference_pb2_grpc.InferenceServiceServicer, worker_pb2_grpc.WorkerServiceServicer):
    """Passes a real worker's stream on, and breaks down after its last event."""

    def __init__(self, address: str) -> None:
        channel = grpc.aio.insecure_channel(address)
        self.channel = channel
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self._worker = worker_pb2_grpc.WorkerServiceStub(channel)
        self.asked = 0

    async def GetModel(self, request: Any, context: Any) -> Any:
        return await self._worker.GetModel(request)

    async def GetLoad(self, request: Any, context: Any) -> Any:
        return await self._worker.GetLoad(request)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        self.asked += 1
        async for event in self._inference.Generate(request):
            await context.write(event)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "died before its status")


async def test_a_stream_that_has_its_end_is_not_moved(tmp_path: Path) -> None:
    """A worker lost between `finished` and its status changes nothing: one end, and OK."""
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # noqa: PLC0415

    async with scripted_stack(tmp_path, workers=[{}], with_cache=False) as inner:
        # What it leaves out nobody asks.
        servicer = LastWord(inner.workers[0].server.address)  # type: ignore[abstract]
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
        checks = health.aio.HealthServicer()
        await checks.set("sidecache.v1.InferenceService", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        folder = tmp_path / "outer"
        folder.mkdir()
        settings = {"workers": [f"127.0.0.1:{port}"]}
        try:
            async with scripted_stack(
                folder, workers=[], with_cache=False, router_=settings
            ) as stack:
                events = await events_of(stack.client, "hello", max_tokens=10)
                assert sum(event.HasField("finished") for event in events) == 1
                assert len(ids_of(events)) == 10
                assert servicer.asked == 1
        finally:
            await server.stop(None)
            await servicer.channel.close()
