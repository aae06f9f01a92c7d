"""A worker over gRPC: slots, queues, deadlines, drain, and an engine that dies."""

import asyncio
from statistics import quantiles
from time import perf_counter
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2

from inference_svc.settings import ScriptedSettings
from observability import names
from observability.settings import ServerSettings
from sidecache.errors import (
    EngineFailed,
    Overloaded,
    SetupError,
    Unavailable,
)
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from sidecache.v1.inference_pb2_grpc import InferenceServiceStub
from tests.fixtures.worker import ENDLESS, ids_of, paced, worker


async def test_cancel_frees_the_slot() -> None:
    """From a client's cancel to a free slot: p99 at most 100 ms."""
    took = []
    async with worker(scripted=paced()) as served:
        for _ in range(60):
            call = served.inference.Generate(pb.GenerateRequest(text="x", max_tokens=ENDLESS))
            await call.read()
            await call.read()
            began = perf_counter()
            call.cancel()
            await served.until(running=0)
            took.append(perf_counter() - began)
    assert quantiles(took, n=100)[98] <= 0.1


async def test_a_deadline_frees_the_slot() -> None:
    """An expired deadline ends the stream and reaches the engine."""
    async with worker(scripted=paced()) as served:
        call = served.inference.Generate(
            pb.GenerateRequest(text="x", max_tokens=ENDLESS), timeout=0.1
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pass
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await served.until(running=0, timeout_s=0.5)


async def test_a_full_queue_refuses_early() -> None:
    """Overloaded with RetryInfo, while those inside are not disturbed."""
    async with worker(scripted=paced(), max_sequences=1, max_waiting=1, retry_after_s=3) as served:
        endless = pb.GenerateRequest(text="x", max_tokens=ENDLESS)
        calls = [served.inference.Generate(endless) for _ in range(2)]
        await served.until(running=1, waiting=1)
        with pytest.raises(Overloaded) as refused:
            await served.events(endless)
        assert refused.value.retry_after_s == 3
        for call in calls:
            call.cancel()
        await served.until(running=0)
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_a_stalled_reader_is_cut_off() -> None:
    """A reader that takes nothing loses its stream and its slot, whatever waits for it."""
    # A window of 64 KiB that does not grow.
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
    settings = {"stall_timeout_s": 0.2, "coalesce_max_tokens": 1024}
    async with (
        worker(scripted=ScriptedSettings(context_length=200_000), **settings) as served,
        grpc.aio.insecure_channel(served.address, narrow) as channel,
    ):
        stub: Any = InferenceServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(text="x", max_tokens=150_000))
        await call.read()
        # The slot is free when the whole answer is made; the stream is not over yet.
        async with asyncio.timeout(10):
            while not (spans := served.spans.get_finished_spans()):
                await asyncio.sleep(0.01)
        call.cancel()
    (span,) = [span for span in spans if span.name == "chat scripted"]
    assert (span.attributes or {})[names.ERROR_TYPE] == "StreamInterrupted"


async def test_engine_death_is_told_and_survived() -> None:
    """Running and later requests get EngineFailed, health NOT_SERVING, and it still answers."""
    async with worker(scripted=paced(die_after_tokens=5)) as served:
        assert await served.health() == health_pb2.HealthCheckResponse.SERVING
        outcomes = await asyncio.gather(
            *(served.events(pb.GenerateRequest(text="x", max_tokens=50)) for _ in range(4)),
            return_exceptions=True,
        )
        assert all(isinstance(outcome, EngineFailed) for outcome in outcomes), outcomes
        with pytest.raises(EngineFailed, match="scripted death"):
            await served.events(pb.GenerateRequest(text="x", max_tokens=50))
        assert await served.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await served.load()).running_sequences == 0


async def test_drain_lets_streams_finish_and_admits_none() -> None:
    """Drain waits for what runs, refuses what comes, and counts nothing as aborted."""
    async with worker(scripted=paced()) as served:
        running = asyncio.create_task(served.events(pb.GenerateRequest(text="x", max_tokens=40)))
        await served.until(running=1)
        grace = duration_pb2.Duration(seconds=10)
        drain = asyncio.ensure_future(served.control.Drain(worker_pb2.DrainRequest(grace=grace)))
        while not (await served.load()).draining:
            pass
        assert await served.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(Unavailable, match="drains"):
            await served.events(pb.GenerateRequest(text="x"))
        assert (await drain).aborted_streams == 0
        assert len(ids_of(await running)) == 40


async def test_drain_ends_what_outlasts_the_grace_period() -> None:
    """What still runs is ended as Unavailable and counted."""
    async with worker(scripted=paced()) as served:
        running = asyncio.create_task(
            served.events(pb.GenerateRequest(text="x", max_tokens=ENDLESS))
        )
        await served.until(running=1)
        drained = await served.control.Drain(
            worker_pb2.DrainRequest(grace=duration_pb2.Duration(nanos=50_000_000))
        )
        assert drained.aborted_streams == 1
        with pytest.raises(Unavailable, match="grace period"):
            await running
        await served.until(running=0)


async def test_a_busy_port_is_a_setup_error() -> None:
    """The address that is taken is named."""
    async with worker() as served:
        with pytest.raises(SetupError, match=served.address.rpartition(":")[2]):
            async with worker(server=ServerSettings(listen=served.address)):
                pass
