"""The floor a Python gateway stands on: a pass-through that does nothing else.

No auth, no cache, no metrics, no tracing: one upstream channel, one call, one
write for each message. What our router costs is told as a multiple of this, so it runs
on the same event loop and on the same choices of gRPC's.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from observability.grpc_runtime import prepare

prepare()

import grpc
import uvloop

from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc


class PassThrough(inference_pb2_grpc.InferenceServiceServicer):
    """Hands each request to one upstream and its messages back."""

    def __init__(self, upstream: grpc.aio.Channel) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(upstream)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        async for event in self._stub.Generate(request, timeout=context.time_remaining()):
            yield event

    async def Attach(self, request: pb.AttachRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a pass-through of Generate only")

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> Any:
        return await self._stub.ListModels(request)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> Any:
        return await self._stub.Tokenize(request)

    async def ReportWrongAnswer(self, request: pb.ReportWrongAnswerRequest, context: Any) -> Any:
        return await self._stub.ReportWrongAnswer(request)


async def serve(upstream: str, listen: str, ready_file: Path) -> None:
    """Serve until terminated; the address is written to ``ready_file``."""
    async with grpc.aio.insecure_channel(upstream) as channel:
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(PassThrough(channel), server)
        host, _, _ = listen.rpartition(":")
        port = server.add_insecure_port(listen)
        await server.start()
        written = ready_file.with_suffix(".part")
        written.write_text(f"{host}:{port}")
        written.rename(ready_file)
        await server.wait_for_termination()


if __name__ == "__main__":
    # Settings come as they come to our services, so that one runner starts them all.
    uvloop.run(
        serve(
            os.environ["NAIVE_PROXY_UPSTREAM"],
            os.environ["NAIVE_PROXY_SERVER__LISTEN"],
            Path(os.environ["NAIVE_PROXY_SERVER__READY_FILE"]),
        )
    )
