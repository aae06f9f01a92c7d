"""A router that is killed, with real processes: nobody generates for callers it no longer has."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc

from chaos.process import ServiceProcess
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc

STREAMS = 6


async def test_a_killed_router_leaves_no_orphan_generation(tmp_path: Path) -> None:
    """SIGKILL in mid-stream: the worker's slots are free soon, and it serves the next router."""
    paced = {"engine": "scripted", "scripted__tokens_per_s": "50"}
    async with ServiceProcess.start("inference_svc", tmp_path, paced) as worker:
        settings = {"workers": json.dumps([worker.address]), "insecure": "true"}
        async with (
            grpc.aio.insecure_channel(worker.address) as channel,
            ServiceProcess.start("router", tmp_path, settings, name="one") as router,
        ):
            control: Any = worker_pb2_grpc.WorkerServiceStub(channel)

            async def running() -> int:
                return int((await control.GetLoad(worker_pb2.GetLoadRequest())).running_sequences)

            async with grpc.aio.insecure_channel(router.address) as front:
                stub: Any = inference_pb2_grpc.InferenceServiceStub(front)
                calls = [
                    stub.Generate(pb.GenerateRequest(text=f"{n}", max_tokens=4000))
                    for n in range(STREAMS)
                ]
                for call in calls:
                    while not (await call.read()).delta.token_ids:
                        pass
                assert await running() == STREAMS
                assert await router.kill() == -signal.SIGKILL
                async with asyncio.timeout(3):
                    while await running():
                        await asyncio.sleep(0.01)
                codes = {await call.code() for call in calls}
                assert codes == {grpc.StatusCode.UNAVAILABLE}
        async with (
            ServiceProcess.start("router", tmp_path, settings, name="two") as router,
            grpc.aio.insecure_channel(router.address) as front,
        ):
            stub = inference_pb2_grpc.InferenceServiceStub(front)
            events = [event async for event in stub.Generate(pb.GenerateRequest(text="x"))]
            assert events[-1].HasField("finished")
