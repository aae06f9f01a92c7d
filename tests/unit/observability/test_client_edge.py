import asyncio
import gc
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from observability import names
from observability.channel import open_channel
from observability.interceptors import client_interceptors
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from observability.tracing import current_span_context, current_trace_id
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc
from tests.unit.observability.conftest import End, Pair, Service, serving

Open = Callable[[str, Telemetry], grpc.aio.Channel]


def open_intercepted(target: str, telemetry: Telemetry) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, interceptors=client_interceptors(telemetry, target))


both_ways = pytest.mark.parametrize(
    "open_way",
    [pytest.param(open_channel, id="channel"), pytest.param(open_intercepted, id="interceptors")],
)


async def hang(_request: Any, _context: Any) -> None:
    await asyncio.Event().wait()


async def refuse(_request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, "no")


async def drain(call: Any) -> None:
    async for _ in call:
        pass


@both_ways
@pytest.mark.parametrize("streams", [False, True])
async def test_each_call_ends_one_span_with_its_status(
    pair: Pair,
    open_way: Open,
    streams: bool,
) -> None:
    """OK, a server's error and an expired deadline each end one span and one duration."""
    async with open_way(pair.address, pair.client.telemetry) as channel:
        stub: Any = rpc.InferenceServiceStub(channel)

        async def call(timeout_s: float | None = None) -> None:
            if streams:
                await drain(stub.Generate(pb.GenerateRequest(), timeout=timeout_s))
            else:
                await stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s)

        await call()
        pair.service.unary = pair.service.stream = refuse
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await call()
        pair.service.unary = pair.service.stream = hang
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE"):
            await call(timeout_s=0.1)
    spans = pair.client.spans(SpanKind.CLIENT)
    assert [s.attributes[names.RPC_RESPONSE_STATUS_CODE] for s in spans] == [
        "OK",
        "NOT_FOUND",
        "DEADLINE_EXCEEDED",
    ]
    assert [s.status.status_code for s in spans] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.ERROR,
    ]
    assert all(s.attributes[names.SERVER_ADDRESS] == pair.address for s in spans)
    points = pair.client.points(names.RPC_CLIENT_CALL_DURATION)
    assert sorted((p.attributes[names.RPC_RESPONSE_STATUS_CODE], p.count) for p in points) == [
        ("DEADLINE_EXCEEDED", 1),
        ("NOT_FOUND", 1),
        ("OK", 1),
    ]


@both_ways
async def test_an_unsampled_call_carries_its_trace_on(open_way: Open) -> None:
    """Without sampling no span is made, and the next hop still gets trace id and flag 00."""
    client = End.start("sidecache-client", TelemetrySettings(trace_sample_ratio=0))
    seen: list[Any] = []

    async def look(_request: Any, context: Any) -> Any:
        seen.append((dict(context.invocation_metadata()), current_span_context()))
        return pb.ListModelsResponse()

    async with (
        serving(Service(unary=look)) as pair,
        open_way(pair.address, client.telemetry) as channel,
    ):
        await rpc.InferenceServiceStub(channel).ListModels(
            pb.ListModelsRequest(), metadata=(("authorization", "Bearer k"),)
        )
        [(metadata, context)] = seen
        version, trace_id, span_id, flags = metadata["traceparent"].split("-")
        assert (version, flags) == ("00", "00")
        assert trace_id == f"{context.trace_id:032x}" != "0" * 32
        assert span_id != "0" * 16
        assert metadata["authorization"] == "Bearer k"
        assert client.spans() == pair.server.spans() == []
        assert len(pair.server.points(names.RPC_SERVER_CALL_DURATION)) == 1


async def test_a_call_inside_a_handler_continues_its_trace(pair: Pair) -> None:
    """A server that calls on is the parent of that call: one trace over three spans."""
    async with serving(Service(), client=pair.server) as behind:

        async def relay(_request: Any, _context: Any) -> Any:
            return await behind.stub.ListModels(pb.ListModelsRequest())

        pair.service.unary = relay
        await pair.stub.ListModels(pb.ListModelsRequest())
        first = await pair.client.one_span(SpanKind.CLIENT)
        door = await pair.server.one_span(SpanKind.SERVER)
        onward = await pair.server.one_span(SpanKind.CLIENT)
        last = await behind.server.one_span(SpanKind.SERVER)
    assert [s.parent and s.parent.span_id for s in (door, onward, last)] == [
        s.context.span_id for s in (first, door, onward)
    ]
    assert len({s.context.trace_id for s in (first, door, onward, last)}) == 1


async def test_an_abandoned_stream_is_cancelled_without_a_collection(pair: Pair) -> None:
    """Dropping a stream frees the server's handler at once, though nobody called cancel().

    grpcio 1.83 and later never cancel it (grpc issue 43462); nor may our record of
    the call keep it alive until the garbage collector runs.
    """
    stopped = asyncio.Event()

    async def endless(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    pair.service.stream = endless
    gc.disable()
    try:
        call = pair.stub.Generate(pb.GenerateRequest())
        await call.read()
        del call
        async with asyncio.timeout(2):
            await stopped.wait()
        client = await pair.client.one_span(SpanKind.CLIENT)
    finally:
        gc.enable()
    assert client.attributes[names.RPC_RESPONSE_STATUS_CODE] == "CANCELLED"


async def test_a_cancelled_unary_call_ends_its_span(pair: Pair) -> None:
    """Cancelling the task that awaits a call ends the call's span as CANCELLED."""
    pair.service.unary = hang
    call = pair.stub.ListModels(pb.ListModelsRequest())
    waiting = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    client = await pair.client.one_span(SpanKind.CLIENT)
    assert client.attributes[names.RPC_RESPONSE_STATUS_CODE] == "CANCELLED"


async def test_a_closed_channel_ends_the_span_it_began(pair: Pair) -> None:
    """A call that cannot even start still ends its span, and raises as gRPC does."""
    await pair.channel.close()
    with pytest.raises(grpc.aio.UsageError):
        await pair.stub.ListModels(pb.ListModelsRequest())
    assert len(pair.client.spans(SpanKind.CLIENT)) == 1


async def test_a_distrusted_callers_flag_is_decided_again() -> None:
    """A door that does not trust its callers samples by its own ratio, in the caller's trace."""
    server = End.start(
        "sidecache-router",
        TelemetrySettings(trust_caller_sampling=False, trace_sample_ratio=0),
    )
    seen: list[str] = []

    async def look(_request: Any, _context: Any) -> Any:
        seen.append(current_trace_id())
        return pb.ListModelsResponse()

    async with serving(Service(unary=look), server=server) as pair:
        await pair.stub.ListModels(pb.ListModelsRequest())
        client = await pair.client.one_span(SpanKind.CLIENT)
        assert seen == [f"{client.context.trace_id:032x}"]
        assert server.spans() == []
