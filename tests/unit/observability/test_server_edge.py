import asyncio
import contextlib
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from observability import names
from observability.interceptors import is_client_gone
from observability.tracing import current_trace_id
from sidecache.errors import (
    BrokenInvariant,
    InvalidRequest,
    NoHealthyWorker,
    Overloaded,
    Unauthenticated,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc
from tests.unit.observability.conftest import STREAM, UNARY, Pair, Service, serving
from tests.unit.observability.relay import Relay

SECRET = "canary-7f3a91"  # noqa: S105 - looked for where it must not be


async def drain(call: Any) -> None:
    async for _ in call:
        pass


def code_of(span: Any) -> str:
    return str(span.attributes[names.RPC_RESPONSE_STATUS_CODE])


async def test_a_unary_call_is_one_trace_with_rpc_attributes(pair: Pair) -> None:
    """Client and server span of a call share a trace, and the server's parent is the client's."""
    await pair.stub.ListModels(pb.ListModelsRequest())
    client = await pair.client.one_span(SpanKind.CLIENT)
    server = await pair.server.one_span(SpanKind.SERVER)
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    assert server.context.trace_id == client.context.trace_id
    assert server.name == client.name == UNARY
    for span in (client, server):
        assert span.attributes[names.RPC_SYSTEM_NAME] == "grpc"
        assert span.attributes[names.RPC_METHOD] == UNARY
        assert code_of(span) == "OK"
        assert names.ERROR_TYPE not in span.attributes
        assert span.status.status_code is StatusCode.UNSET


async def test_a_stream_is_one_trace_too(pair: Pair) -> None:
    """A stream's spans end once, with the stream, as OK."""
    await drain(pair.stub.Generate(pb.GenerateRequest()))
    client = await pair.client.one_span(SpanKind.CLIENT)
    server = await pair.server.one_span(SpanKind.SERVER)
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    assert (code_of(client), code_of(server)) == ("OK", "OK")
    assert server.name == STREAM


async def test_a_handler_runs_under_its_span(pair: Pair) -> None:
    """Inside a handler the current span is the call's own, so children and logs find it."""
    seen: list[tuple[bool, str]] = []

    async def look(_request: Any, _context: Any) -> Any:
        seen.append((trace.get_current_span().is_recording(), current_trace_id()))
        return pb.ListModelsResponse()

    pair.service.unary = look
    await pair.stub.ListModels(pb.ListModelsRequest())
    server = await pair.server.one_span(SpanKind.SERVER)
    assert seen == [(True, f"{server.context.trace_id:032x}")]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_domain_error_arrives_as_itself(pair: Pair, grouped: bool) -> None:
    """What a handler raises, alone or in a TaskGroup's group, the client can raise again."""

    async def refuse(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        error = Overloaded("too much at once", retry_after_s=2.5)
        raise ExceptionGroup("tasks", [error]) if grouped else error

    pair.service.stream = refuse
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await drain(pair.stub.Generate(pb.GenerateRequest()))
    error = from_rpc_error(failed.value)
    assert isinstance(error, Overloaded)
    assert (error.text, error.retry_after_s) == ("too much at once", 2.5)
    server = await pair.server.one_span(SpanKind.SERVER)
    client = await pair.client.one_span(SpanKind.CLIENT)
    assert code_of(server) == code_of(client) == "RESOURCE_EXHAUSTED"
    assert server.attributes[names.ERROR_REASON] == "OVERLOADED"
    # The caller's problem: an error of the client's span, not of the server's.
    assert server.status.status_code is StatusCode.UNSET
    assert client.status.status_code is StatusCode.ERROR


async def test_a_bug_says_nothing_but_its_trace(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown exception is INTERNAL; its text reaches neither the client nor the span."""

    async def fail(_request: Any, _context: Any) -> None:
        raise ValueError(SECRET)

    pair.service.unary = fail
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await pair.stub.ListModels(pb.ListModelsRequest())
    error = from_rpc_error(failed.value)
    server = await pair.server.one_span(SpanKind.SERVER)
    assert isinstance(error, BrokenInvariant)
    assert f"{server.context.trace_id:032x}" in error.text
    assert SECRET not in str(failed.value)
    assert SECRET not in server.to_json()
    assert server.status.status_code is StatusCode.ERROR
    assert server.attributes[names.EXCEPTION_TYPE] == "ValueError"
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert UNARY in record.getMessage()


async def test_a_bug_outranks_a_domain_error_in_one_group(pair: Pair) -> None:
    """When tasks fail in several ways the worst decides, so a bug is never hidden."""

    async def fail(_request: Any, _context: Any) -> None:
        errors = [NoHealthyWorker("none"), asyncio.CancelledError(), KeyError("bug")]
        raise BaseExceptionGroup("tasks", errors)

    pair.service.unary = fail
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await pair.stub.ListModels(pb.ListModelsRequest())
    assert failed.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        b"\x0a\x02\xff\xfe",  # GenerateRequest.model, not UTF-8
        b"\x0a\x7fshort",
    ],
)
async def test_malformed_bytes_are_the_callers_mistake(
    pair: Pair, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no message get INVALID_ARGUMENT with BadRequest, and the server goes on."""
    send = pair.channel.unary_stream(f"/{STREAM}")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await drain(send(raw))
    assert isinstance(from_rpc_error(failed.value), InvalidRequest)
    status = rpc_status.from_call(failed.value)  # type: ignore[arg-type]  # an aio error is a Call too
    assert any(d.Is(error_details_pb2.BadRequest.DESCRIPTOR) for d in status.details)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    await pair.stub.ListModels(pb.ListModelsRequest())


async def test_a_cancel_by_the_client_ends_both_spans_as_cancelled(pair: Pair) -> None:
    """After call.cancel() the handler is cancelled, and both spans end once as CANCELLED."""
    stopped = asyncio.Event()

    async def endless(_request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    pair.service.stream = endless
    call = pair.stub.Generate(pb.GenerateRequest())
    await call.read()
    call.cancel()
    await asyncio.wait_for(stopped.wait(), 5)
    server = await pair.server.one_span(SpanKind.SERVER)
    client = await pair.client.one_span(SpanKind.CLIENT)
    assert (code_of(server), code_of(client)) == ("CANCELLED", "CANCELLED")
    assert server.status.status_code is StatusCode.UNSET


async def test_an_expired_deadline_is_told_from_a_cancel(pair: Pair) -> None:
    """A call whose time ran out ends as DEADLINE_EXCEEDED on both ends."""

    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    pair.service.stream = hang
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await drain(pair.stub.Generate(pb.GenerateRequest(), timeout=0.1))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server = await pair.server.one_span(SpanKind.SERVER)
    client = await pair.client.one_span(SpanKind.CLIENT)
    assert (code_of(server), code_of(client)) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_vanished_client_is_no_error(
    pair: Pair,
    grouped: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A write to a client that is gone ends the span as CANCELLED, without an error line."""
    failures: list[BaseException] = []

    async def write_until_it_fails(context: Any) -> None:
        try:
            while True:
                await context.write(pb.GenerateResponse())
        except BaseException as error:
            failures.append(error)
            raise

    async def write_on(_request: Any, context: Any) -> None:
        # gRPC cancels the handler too; a writer of its own shows the failed write,
        # which often comes first.
        writer = asyncio.create_task(write_until_it_fails(context))
        await asyncio.wait([writer])
        if grouped:
            raise ExceptionGroup("tasks", [*failures])  # type: ignore[type-var]
        writer.result()

    async def ignore_cancel(request: Any, context: Any) -> None:
        task = asyncio.create_task(write_on(request, context))
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.result()

    pair.service.stream = ignore_cancel
    async with Relay.to(pair.address) as relay, grpc.aio.insecure_channel(relay.address) as channel:
        call = rpc.InferenceServiceStub(channel).Generate(pb.GenerateRequest())
        await call.read()
        relay.cut()
        server = await pair.server.one_span(SpanKind.SERVER)
        assert code_of(server) == "CANCELLED"
        assert [type(error).__name__ for error in failures] == ["ExecuteBatchError"]
        assert is_client_gone(failures[0])
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_an_interceptor_behind_the_edge_may_refuse() -> None:
    """A SidecacheError from a later interceptor is a status, inside the call's trace."""

    class Door(grpc.aio.ServerInterceptor):
        async def intercept_service(self, _continuation: Any, _details: Any) -> Any:
            assert current_trace_id()
            raise Unauthenticated("no key")

    async with serving(Service(), interceptors=[Door()]) as guarded:
        for call in (
            guarded.stub.ListModels(pb.ListModelsRequest()),
            guarded.stub.Generate(pb.GenerateRequest()).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert isinstance(from_rpc_error(failed.value), Unauthenticated)
        assert [code_of(s) for s in guarded.server.spans(SpanKind.SERVER)] == [
            "UNAUTHENTICATED",
            "UNAUTHENTICATED",
        ]


async def test_a_bug_in_an_interceptor_behind_the_edge_is_hidden_too() -> None:
    """What a later interceptor raises by mistake is INTERNAL, without its text."""

    class Broken(grpc.aio.ServerInterceptor):
        async def intercept_service(self, _continuation: Any, _details: Any) -> Any:
            raise ValueError(SECRET)

    async with serving(Service(), interceptors=[Broken()]) as guarded:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await guarded.stub.ListModels(pb.ListModelsRequest())
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert SECRET not in str(failed.value)
        assert code_of(await guarded.server.one_span(SpanKind.SERVER)) == "INTERNAL"


@pytest.mark.parametrize("kind", ["abort", "cancel"])
async def test_a_groups_abort_or_cancel_is_no_bug(
    pair: Pair, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An abort or a cancel that a TaskGroup wrapped ends the call as it would have unwrapped."""

    async def fail(_request: Any, context: Any) -> None:
        if kind == "cancel":
            raise BaseExceptionGroup("tasks", [asyncio.CancelledError()])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(context.abort(grpc.StatusCode.DATA_LOSS, "lost"))

    pair.service.unary = fail
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await pair.stub.ListModels(pb.ListModelsRequest(), timeout=2)
    server = await pair.server.one_span(SpanKind.SERVER)
    assert code_of(server) == ("DATA_LOSS" if kind == "abort" else "CANCELLED")
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_abort_keeps_its_status_and_trailing_metadata(pair: Pair) -> None:
    """A handler may speak gRPC itself; its code is what is recorded."""

    async def abort(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost", (("key", "value"),))

    pair.service.unary = abort
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await pair.stub.ListModels(pb.ListModelsRequest())
    assert failed.value.code() is grpc.StatusCode.DATA_LOSS
    trailing = failed.value.trailing_metadata()
    assert trailing is not None
    assert trailing["key"] == "value"
    assert code_of(await pair.server.one_span(SpanKind.SERVER)) == "DATA_LOSS"


async def test_unknown_methods_are_unimplemented_and_recorded_under_one_name(pair: Pair) -> None:
    """A path nobody serves is refused by gRPC, and cannot grow what we keep per method."""
    for name in ("A", "B"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await pair.channel.unary_unary(f"/no.Such/{name}")(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    recorded = {
        p.attributes[names.RPC_METHOD] for p in pair.server.points(names.RPC_SERVER_CALL_DURATION)
    }
    assert recorded == {"_OTHER"}


async def test_durations_use_the_conventions_buckets(pair: Pair) -> None:
    """Each call is one point of rpc.server.call.duration, by method and status."""
    await pair.stub.ListModels(pb.ListModelsRequest())
    await drain(pair.stub.Generate(pb.GenerateRequest()))
    points = pair.server.points(names.RPC_SERVER_CALL_DURATION)
    assert {p.attributes[names.RPC_METHOD]: p.count for p in points} == {UNARY: 1, STREAM: 1}
    assert tuple(points[0].explicit_bounds) == names.RPC_DURATION_BUCKETS
    assert {p.attributes[names.RPC_RESPONSE_STATUS_CODE] for p in points} == {"OK"}
    assert sum(p.count for p in pair.client.points(names.RPC_CLIENT_CALL_DURATION)) == 2
