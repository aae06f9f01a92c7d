"""The client against a real grpc.aio server: streams, errors, cancel, deadline, spans."""

import asyncio
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, use_span

from sidecache import errors
from sidecache.client import ChatMessage, ClientTls, FinishReason, SidecacheClient, Source
from sidecache.transport import is_local, split_address
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

from .conftest import Context, Script, ScriptedService
from .events import PROGRESS, STARTED, delta, finished


def playing(*events: pb.GenerateResponse) -> Script:
    async def script(context: Context) -> None:
        for event in events:
            await context.write(event)

    return script


def failing(error: errors.SidecacheError, *events: pb.GenerateResponse) -> Script:
    async def script(context: Context) -> None:
        for event in events:
            await context.write(event)
        raise error

    return script


async def hanging(context: Context) -> None:
    await context.write(STARTED)
    await context.write(delta(0, 1, text="a"))
    await asyncio.Event().wait()


WHOLE = (STARTED, PROGRESS, delta(0, 5, text="He"), delta(1, 6, 7, text="llo"), finished(tokens=3))


async def test_an_answer_arrives_whole(service: ScriptedService) -> None:
    """Text, ids, provenance, usage and times of one answer, from one call."""
    service.script = playing(*WHOLE)
    async with SidecacheClient(service.address, api_key="k") as client:
        answer = await client.complete("hi", max_tokens=3)
    assert (answer.text, answer.token_ids) == ("Hello", [5, 6, 7])
    assert answer.source is Source.ENGINE
    assert answer.finish_reason is FinishReason.STOP
    assert (answer.request_id, answer.worker, answer.trace_id) == ("r1", "w1", "ab" * 16)
    assert answer.usage.completion_tokens == 3
    assert answer.ttft_s is not None
    assert 0 < answer.ttft_s <= answer.duration_s
    assert service.metadata[0]["authorization"] == "Bearer k"
    assert service.requests[0].max_tokens == 3


async def test_events_arrive_while_the_server_still_generates(service: ScriptedService) -> None:
    """Streaming is streaming: a token is readable before the next one exists."""
    go_on = asyncio.Event()

    async def script(context: Context) -> None:
        await context.write(STARTED)
        await context.write(delta(0, 1, text="a"))
        await go_on.wait()
        await context.write(delta(1, 2, text="b"))
        await context.write(finished())

    service.script = script
    async with SidecacheClient(service.address) as client, client.generate("hi") as stream:
        pieces = stream.text()
        assert await anext(pieces) == "a"
        assert stream.started is not None
        assert stream.ttft_s is not None
        go_on.set()
        assert [piece async for piece in pieces] == ["b"]
        # An ended stream stays ended.
        assert [event async for event in stream] == []


async def test_choices_are_kept_apart(service: ScriptedService) -> None:
    """With n=2 each choice has its own text and reason."""
    service.script = playing(
        STARTED, delta(0, 1, text="a"), delta(0, 2, text="b", choice=1), finished(1), finished(0)
    )
    async with SidecacheClient(service.address) as client:
        answer = await client.complete([ChatMessage(role="user", content="hi")], n=2)
    assert [choice.text for choice in answer.choices] == ["a", "b"]


@pytest.mark.parametrize(
    "events",
    [
        (STARTED, delta(0, 1), delta(2, 3), finished()),
        (STARTED, delta(0, 1, 2), delta(1, 2), finished()),
        (STARTED, delta(0, 1)),
    ],
    ids=["gap", "repeat", "cut short"],
)
async def test_a_broken_stream_raises(
    service: ScriptedService, events: tuple[pb.GenerateResponse, ...]
) -> None:
    """Loss and repetition never pass as an answer, though the server says OK."""
    service.script = playing(*events)
    async with SidecacheClient(service.address) as client:
        with pytest.raises(errors.BrokenInvariant):
            await client.complete("hi")


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("is 0, at least 1", field="max_tokens"),
        errors.Unauthenticated("no such key"),
        errors.ModelNotFound("no model nope", kind="model", name="nope"),
        errors.Overloaded("queue full", retry_after_s=2.5),
        errors.StreamInterrupted("the worker died"),
        errors.NoHealthyWorker("none ready"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_servers_error_is_the_same_class_here(
    service: ScriptedService, error: errors.SidecacheError
) -> None:
    """Class, text and details of an error survive the wire, tokens before it too."""
    service.script = failing(error, STARTED, delta(0, 1, text="a"))
    async with SidecacheClient(service.address) as client, client.generate("hi") as stream:
        pieces = stream.text()
        assert await anext(pieces) == "a"
        with pytest.raises(type(error)) as caught:
            await anext(pieces)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


async def test_no_server_is_unavailable() -> None:
    """An address where nobody listens is one clear error, at once."""
    async with SidecacheClient("127.0.0.1:1") as client:
        with pytest.raises(errors.Unavailable):
            await client.complete("hi")
        with pytest.raises(errors.Unavailable):
            await client.health()


async def test_leaving_the_block_cancels_the_server(service: ScriptedService) -> None:
    """An abandoned generation does not hold the engine."""
    service.script = hanging
    async with SidecacheClient(service.address) as client:
        async with client.generate("hi") as stream:
            async for _ in stream.text():
                break
        async with asyncio.timeout(5):
            await service.ended.wait()


async def test_a_cancelled_task_cancels_the_server(service: ScriptedService) -> None:
    """Cancelling the task that reads ends the call, and stays a cancellation."""
    service.script = hanging
    async with SidecacheClient(service.address) as client:
        first = asyncio.Event()

        async def read() -> None:
            async with client.generate("hi") as stream:
                async for _ in stream.text():
                    first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await service.ended.wait()


async def test_cancel_from_another_task(service: ScriptedService) -> None:
    """`stream.cancel()` ends the reader with our error, and its task goes on."""
    service.script = hanging
    async with SidecacheClient(service.address) as client, client.generate("hi") as stream:
        pieces = stream.text()
        await anext(pieces)
        asyncio.get_running_loop().call_soon(stream.cancel)
        with pytest.raises(errors.Cancelled):
            await anext(pieces)
        async with asyncio.timeout(5):
            await service.ended.wait()


async def test_closing_the_client_ends_its_streams(service: ScriptedService) -> None:
    """Who still reads gets our error; its task is not cancelled along."""
    service.script = hanging
    client = await SidecacheClient(service.address).__aenter__()
    async with client.generate("hi") as stream:
        pieces = stream.text()
        await anext(pieces)
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(client.aclose()))
        with pytest.raises(errors.Cancelled):
            await anext(pieces)


async def test_a_deadline_ends_the_generation(service: ScriptedService) -> None:
    """The deadline is the caller's own and has its own error."""
    service.script = hanging
    async with SidecacheClient(service.address) as client:
        with pytest.raises(errors.DeadlineExceeded):
            await client.complete("hi", timeout_s=0.2)
        async with asyncio.timeout(5):
            await service.ended.wait()


async def test_the_other_calls(service: ScriptedService) -> None:
    """Health, models and tokens; a service this server lacks is Unsupported."""
    async with SidecacheClient(service.address) as client:
        assert await client.health()
        assert [model.name for model in await client.models()] == ["scripted"]
        assert await client.tokenize(text="ab") == [97, 98]
        assert await client.tokenize("ab") == [97, 98]
        with pytest.raises(errors.NotFound):
            await client.health("nobody")
        with pytest.raises(errors.Unsupported):
            await client.workers()
        with pytest.raises(errors.Unsupported):
            await client.cache_stats()
        with pytest.raises(errors.InvalidRequest):
            await client.tokenize()


async def test_one_span_tells_the_story(service: ScriptedService) -> None:
    """A CLIENT span with the GenAI attributes and no content, and its trace on the wire."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service.script = playing(*WHOLE)
    async with SidecacheClient(service.address, tracer_provider=provider) as client:
        await client.complete("a canary", model="m", max_tokens=9, temperature=0.5, seed=3)
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat m"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" in str(service.metadata[0]["traceparent"])
    assert span.attributes is not None
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert attributes.pop("server.port") == int(service.address.rpartition(":")[2])
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sidecache",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": "r1",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "sidecache.source": "SOURCE_ENGINE",
        "server.address": "127.0.0.1",
    }
    assert "canary" not in span.to_json()


async def test_a_failed_or_abandoned_span_says_so(service: ScriptedService) -> None:
    """Every span ends, and neither an error nor a cancellation looks like success."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with SidecacheClient(service.address, tracer_provider=provider) as client:
        service.script = failing(errors.Overloaded("full"))
        with pytest.raises(errors.Overloaded):
            await client.complete("hi")
        service.script = hanging
        async with client.generate("hi") as stream:
            async for _ in stream:
                break
    failed, abandoned = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "OVERLOADED"
    assert abandoned.attributes is not None
    assert abandoned.attributes["error.type"] == "CANCELLED"


async def test_without_a_provider_a_callers_trace_goes_on(service: ScriptedService) -> None:
    """No provider: no header of our own making, but a trace the caller is in is passed on."""
    service.script = playing(*WHOLE)
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    async with SidecacheClient(service.address) as client:
        await client.complete("hi")
        with use_span(NonRecordingSpan(context)):
            await client.complete("hi")
    assert "traceparent" not in service.metadata[0]
    assert service.metadata[1]["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


async def test_a_key_never_travels_in_plaintext_by_accident() -> None:
    """Plaintext with a key beyond this machine is refused unless it is asked for."""
    refused = SidecacheClient("gateway.example:7070", api_key="k", tls=False)
    with pytest.raises(errors.SetupError, match="plaintext"):
        await refused.__aenter__()
    for allowed in (
        SidecacheClient("gateway.example:7070", api_key="k"),
        SidecacheClient("gateway.example:7070", api_key="k", allow_plaintext=True),
        SidecacheClient("gateway.example:7070", tls=False),
        SidecacheClient("unix:/nowhere", api_key="k", tls=False),
    ):
        async with allowed:
            pass


async def test_misuse_has_a_word(tmp_path: Path) -> None:
    """A closed client, a bad key and a missing TLS file each say what is wrong."""
    client = SidecacheClient("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="not open"):
        client.generate("hi")
    with pytest.raises(errors.InvalidRequest, match="ASCII"):
        SidecacheClient("127.0.0.1:1", api_key="k\n")
    tls = ClientTls(ca_file=tmp_path / "none.pem")
    with pytest.raises(errors.SetupError, match=r"none\.pem"):
        await SidecacheClient("127.0.0.1:1", tls=tls).__aenter__()


async def test_a_client_over_tls(tmp_path: Path) -> None:
    """A server's certificate is checked against the given authority."""
    certificate = await _self_signed(tmp_path)
    service = ScriptedService(script=playing(*WHOLE))
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    pair = ((tmp_path / "key.pem").read_bytes(), certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        tls = ClientTls(ca_file=certificate, server_name="gateway.test")
        async with SidecacheClient(f"127.0.0.1:{port}", api_key="k", tls=tls) as client:
            assert (await client.complete("hi")).text == "Hello"
        async with SidecacheClient(f"127.0.0.1:{port}", api_key="k", tls=True) as client:
            with pytest.raises(errors.Unavailable):
                await client.complete("hi")
    finally:
        await server.stop(None)


async def _self_signed(folder: Path) -> Path:
    certificate = folder / "cert.pem"
    openssl = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        "-subj", "/CN=gateway.test", "-addext", "subjectAltName=DNS:gateway.test",
        "-keyout", str(folder / "key.pem"), "-out", str(certificate),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await openssl.wait() == 0
    return certificate


@pytest.mark.parametrize(
    ("address", "local", "parts"),
    [
        ("127.0.0.1:7070", True, ("127.0.0.1", 7070)),
        ("localhost:7070", True, ("localhost", 7070)),
        ("[::1]:7070", True, ("::1", 7070)),
        ("unix:/run/x.sock", True, ("/run/x.sock", None)),
        ("127.0.0.1.evil.example:7070", False, ("127.0.0.1.evil.example", 7070)),
        ("10.0.0.1:7070", False, ("10.0.0.1", 7070)),
        ("dns:///gateway.example:443", False, ("gateway.example", 443)),
        ("gateway.example", False, ("gateway.example", None)),
    ],
)
def test_what_counts_as_this_machine(
    address: str, local: bool, parts: tuple[str, int | None]
) -> None:
    """Only loopback and Unix sockets may carry a key in plaintext by themselves."""
    assert is_local(address) is local
    assert split_address(address) == parts
