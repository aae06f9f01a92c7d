"""Streams against a generation service, timed by a client that does little else."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc


@dataclass(frozen=True, slots=True)
class Timed:
    """One stream: where it came from, and its times in seconds from the call."""

    source: int
    tokens: int
    first_token_s: float
    duration_s: float


class StreamClient:
    """Calls Generate on one address over one channel."""

    def __init__(self, address: str, api_key: str | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def stream(self, request: pb.GenerateRequest) -> Timed:
        """Read one stream to its end.

        Raises:
            grpc.aio.AioRpcError: it failed.
        """
        started = time.perf_counter()
        first_token_s, tokens, source = 0.0, 0, pb.SOURCE_UNSPECIFIED
        async for message in self._stub.Generate(request, metadata=self._metadata, timeout=60):
            if message.HasField("started"):
                source = message.started.source
            if message.HasField("delta"):
                if not tokens:
                    first_token_s = time.perf_counter() - started
                tokens += len(message.delta.token_ids)
        return Timed(source, tokens, first_token_s, time.perf_counter() - started)

    async def streams(
        self, requests: Sequence[pb.GenerateRequest], concurrency: int
    ) -> list[Timed]:
        """Read many streams, ``concurrency`` at a time."""
        pending = iter(requests)
        done: list[Timed] = []

        async def worker() -> None:
            for request in pending:
                done.append(await self.stream(request))  # noqa: PERF401 - one at a time

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(worker())
        return done
