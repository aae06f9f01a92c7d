import asyncio
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.trace import SpanKind

from observability.channel import open_channel
from observability.settings import ServerSettings
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc
from tests.unit.observability.conftest import SERVICE, Pair, Service, serving
from tests.unit.observability.relay import Relay

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def status_of(pair: Pair, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(pair.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return reply.status


async def test_health_follows_set_serving(pair: Pair) -> None:
    """The server and each of its services answer health checks, alike and at once."""
    assert pair.running is not None
    for serving_now in (True, False, True):
        pair.running.set_serving(serving_now)
        expected = SERVING if serving_now else NOT_SERVING
        assert await status_of(pair) == await status_of(pair, SERVICE) == expected
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await status_of(pair, "no.Such")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_each_change_and_the_end(pair: Pair) -> None:
    """Watch tells the state now, each change, and NOT_SERVING before a drain ends it."""
    assert pair.running is not None
    stub: Any = health_pb2_grpc.HealthStub(pair.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert (await watch.read()).status == SERVING
    pair.running.set_serving(False)
    assert (await watch.read()).status == NOT_SERVING
    pair.running.set_serving(True)
    assert (await watch.read()).status == SERVING
    drained = asyncio.create_task(pair.running.drain(10))
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF
    # A watcher that stayed would have used up the whole grace.
    await asyncio.wait_for(drained, 5)


async def test_a_services_own_option_counts_for_more() -> None:
    """It may send more than the settings let everyone send, as a large tokenizer's file."""
    large = pb.ListModelsResponse(models=[pb.Model(name="m" * 5000)])

    async def answer(_request: Any, _context: Any) -> pb.ListModelsResponse:
        return large

    settings = ServerSettings(max_message_bytes=4096)
    for most, taken in ((4096, False), (8192, True)):
        options = (("grpc.max_send_message_length", most),)
        async with serving(Service(unary=answer), settings=settings, options=options) as pair:
            call = pair.stub.ListModels(pb.ListModelsRequest(), timeout=5)
            if taken:
                assert await call == large
                continue
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
                await call


async def test_a_drain_lets_running_calls_finish(pair: Pair) -> None:
    """During a drain the running stream ends whole, and new calls are refused."""
    assert pair.running is not None
    half, rest = asyncio.Event(), asyncio.Event()

    async def two_halves(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        half.set()
        await rest.wait()
        await context.write(pb.GenerateResponse())

    pair.service.stream = two_halves
    call = pair.stub.Generate(pb.GenerateRequest())
    await call.read()
    await half.wait()
    drained = asyncio.create_task(pair.running.drain(30))
    await asyncio.sleep(0)
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pair.stub.ListModels(pb.ListModelsRequest())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == "this server drains; ask another one"
    assert not drained.done()
    rest.set()
    assert await call.read() is not grpc.aio.EOF
    assert await call.read() is grpc.aio.EOF
    await asyncio.wait_for(drained, 5)


async def test_calls_that_meet_a_drain_end_ok_or_unavailable(pair: Pair) -> None:
    """Nobody who calls while a server goes away is told that he cancelled."""
    assert pair.running is not None
    codes: set[grpc.StatusCode] = set()

    async def call_until_refused() -> None:
        while True:
            try:
                await pair.stub.ListModels(pb.ListModelsRequest())
                codes.add(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
                return

    async with asyncio.timeout(20):
        callers = [asyncio.create_task(call_until_refused()) for _ in range(50)]
        while grpc.StatusCode.OK not in codes:
            await asyncio.sleep(0)
        await pair.running.drain(10, linger_s=0.2)
        await asyncio.gather(*callers)
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


async def test_a_drain_ends_after_its_grace(pair: Pair) -> None:
    """What still runs after the grace is cancelled, and its handler sees that."""
    assert pair.running is not None
    cancelled = asyncio.Event()

    async def endless(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    pair.service.stream = endless
    call = pair.stub.Generate(pb.GenerateRequest())
    await call.read()
    await asyncio.wait_for(pair.running.drain(0.05), 5)
    await asyncio.wait_for(cancelled.wait(), 5)
    server = await pair.server.one_span(SpanKind.SERVER)
    assert server.end_time is not None


@pytest.mark.parametrize(("asked", "served"), [(None, True), (True, True), (False, False)])
async def test_reflection_is_served_on_loopback_or_when_asked(
    asked: bool | None,
    served: bool,
) -> None:
    """grpcurl can list the services of a local server, unless that is turned off."""
    async with serving(Service(), settings=ServerSettings(reflection=asked)) as pair:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(pair.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        if served:
            [answer] = [a async for a in stub.ServerReflectionInfo(iter([question]))]
            listed = {s.name for s in answer.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= listed
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.ServerReflectionInfo(iter([question])):
                    pass
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_checks_leave_no_spans(pair: Pair) -> None:
    """Probes come every second for ever; they are nobody's request."""
    await status_of(pair)
    assert pair.server.spans() == []


async def test_a_huge_message_is_refused_and_the_server_goes_on() -> None:
    """A message over the limit is RESOURCE_EXHAUSTED; the next call is answered."""
    async with serving(Service(), settings=ServerSettings(max_message_bytes=4096)) as pair:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in pair.stub.Generate(pb.GenerateRequest(text="x" * 8192)):
                pass
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The handler never ran; its span ended nevertheless.
        await pair.server.one_span(SpanKind.SERVER)
        await pair.stub.ListModels(pb.ListModelsRequest())


async def test_a_stalled_reader_bounds_what_is_written(pair: Pair) -> None:
    """A client that stops reading stops the writer after thousands of bytes, not megabytes."""
    written = 0

    async def pour(_request: Any, context: Any) -> None:
        nonlocal written
        while True:
            await context.write(pb.GenerateResponse(started=pb.Started(request_id="x" * 64)))
            written += 1

    pair.service.stream = pour
    call = pair.stub.Generate(pb.GenerateRequest())
    await call.read()
    before = -1
    while written != before:
        before = written
        await asyncio.sleep(0.2)
    call.cancel()
    assert written < 10_000


async def test_eager_pings_are_welcome(pair: Pair) -> None:
    """A client that pings often keeps its connection (a default server says too many pings)."""
    options = [
        ("grpc.keepalive_time_ms", 200),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    release = asyncio.Event()

    async def wait(_request: Any, _context: Any) -> Any:
        await release.wait()
        return pb.ListModelsResponse()

    pair.service.unary = wait
    async with grpc.aio.insecure_channel(pair.address, options) as channel:
        call: Any = rpc.InferenceServiceStub(channel).ListModels(pb.ListModelsRequest())
        asyncio.get_running_loop().call_later(1.5, release.set)
        await call


@pytest.mark.parametrize("end", ["client", "server"])
async def test_a_peer_that_fell_silent_is_noticed(pair: Pair, end: str) -> None:
    """When the peer vanishes without a word, both ends give the call up within seconds."""
    started, stopped = asyncio.Event(), asyncio.Event()

    async def endless(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    pair.service.stream = endless
    async with (
        Relay.to(pair.address) as relay,
        open_channel(relay.address, pair.client.telemetry) as channel,
    ):
        call: Any = rpc.InferenceServiceStub(channel).Generate(pb.GenerateRequest())
        await call.read()
        relay.silence()
        begin = monotonic()
        if end == "server":
            await asyncio.wait_for(stopped.wait(), 10)
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asyncio.wait_for(call.read(), 10)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        # By the settings' defaults 1.0 s at the server and 2.0 s at the client.
        assert monotonic() - begin < (2 if end == "server" else 3)
