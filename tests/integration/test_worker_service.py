"""A worker over gRPC: the scripted engine behind a real server."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from inference_svc.engines.scripted import prompt_seed, scripted_text, scripted_token
from inference_svc.serve import SERVICES, serve
from inference_svc.settings import ScriptedSettings, WorkerSettings
from observability import names
from observability.settings import ServerSettings, TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    PromptTooLong,
    SetupError,
    SidecacheError,
    Unavailable,
    Unsupported,
    from_rpc_error,
)
from sidecache.stream_events import kind_of, single_events
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from sidecache.v1.inference_pb2_grpc import InferenceServiceStub
from sidecache.v1.worker_pb2_grpc import WorkerServiceStub

ENDLESS = 8000


@dataclass
class Worker:
    """A served worker and how to reach it."""

    address: str
    channel: grpc.aio.Channel
    inference: Any
    control: Any
    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader

    async def events(self, request: pb.GenerateRequest, **call: Any) -> list[pb.GenerateResponse]:
        try:
            return [
                event
                async for message in self.inference.Generate(request, **call)
                for event in single_events(message)
            ]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def load(self) -> worker_pb2.GetLoadResponse:
        load: worker_pb2.GetLoadResponse = await self.control.GetLoad(worker_pb2.GetLoadRequest())
        return load

    async def until(self, running: int, waiting: int = 0, timeout_s: float = 5) -> None:
        """Wait until so many sequences run and wait."""
        async with asyncio.timeout(timeout_s):
            while True:
                load = await self.load()
                if (load.running_sequences, load.waiting_sequences) == (running, waiting):
                    return

    async def health(self) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=SERVICES[0]))).status
        return status


@asynccontextmanager
async def worker(**settings: Any) -> AsyncIterator[Worker]:
    """A scripted worker on a free port."""
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    settings.setdefault("server", ServerSettings(drain_grace_s=0.2))
    telemetry = Telemetry.start(
        "sidecache-worker", TelemetrySettings(), span_exporter=spans, metric_reader=metrics
    )
    try:
        async with (
            serve(WorkerSettings(engine="scripted", **settings), telemetry) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            yield Worker(
                running.address,
                channel,
                InferenceServiceStub(channel),
                WorkerServiceStub(channel),
                spans,
                metrics,
            )
    finally:
        await telemetry.aclose()


def paced(**settings: Any) -> ScriptedSettings:
    return ScriptedSettings(tokens_per_s=200, **settings)


def ids_of(events: list[pb.GenerateResponse]) -> list[int]:
    return [each for event in events for each in event.delta.token_ids]


async def test_a_stream_from_started_to_finished() -> None:
    """`started` first, every token at its offset, one `finished` with the usage."""
    async with worker(name="w1") as served:
        events = await served.events(pb.GenerateRequest(text="hello", max_tokens=40))
    kinds = [kind_of(event) for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    started, finished = events[0].started, events[-1].finished
    assert (started.source, started.worker, started.model) == (pb.SOURCE_ENGINE, "w1", "scripted")
    assert re.fullmatch("[0-9a-f]{32}", started.request_id)
    assert re.fullmatch("[0-9a-f]{32}", started.trace_id)
    assert not started.HasField("cached_prompt_tokens")
    expected = [scripted_token(prompt_seed(tuple(b"hello")), position) for position in range(40)]
    assert ids_of(events) == expected
    assert "".join(event.delta.text for event in events) == "".join(map(scripted_text, expected))
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert finished.usage == pb.Usage(prompt_tokens=5, completion_tokens=40)


async def test_the_callers_request_id_is_kept() -> None:
    """A router's id goes through, so that one request has one id everywhere."""
    async with worker() as served:
        request = pb.GenerateRequest(text="x", max_tokens=1)
        events = await served.events(request, metadata=(("x-request-id", "from-the-router"),))
        assert events[0].started.request_id == "from-the-router"
        with pytest.raises(InvalidRequest, match="x-request-id"):
            await served.events(request, metadata=(("x-request-id", "x" * 200),))


async def test_every_choice_is_finished_once() -> None:
    """With n choices each has its own offsets and its own end."""
    async with worker() as served:
        sampling = pb.SamplingParameters(seed=7, temperature=1.0)
        events = await served.events(
            pb.GenerateRequest(text="x", max_tokens=10, n=3, sampling=sampling)
        )
    for choice in range(3):
        deltas = [e.delta for e in events if e.HasField("delta") and e.delta.choice == choice]
        ids = [each for delta in deltas for each in delta.token_ids]
        assert ids == [scripted_token(7 + choice, position) for position in range(10)]
    assert sorted(e.finished.choice for e in events if e.HasField("finished")) == [0, 1, 2]


async def test_tokens_coalesce_up_to_the_limit() -> None:
    """At full speed many tokens share a message, but never more than the setting."""
    async with worker(coalesce_max_tokens=8) as served:
        events = await served.events(pb.GenerateRequest(text="x", max_tokens=64))
    sizes = [len(event.delta.token_ids) for event in events if event.HasField("delta")]
    assert sum(sizes) == 64
    assert max(sizes) == 8


async def test_heartbeats_while_nothing_comes() -> None:
    """In a queue and in a long prefill the stream says that it lives."""
    async with worker(
        scripted=paced(ttft_s=0.2), max_sequences=1, progress_interval_s=0.04
    ) as served:
        request = pb.GenerateRequest(text="x", max_tokens=2)
        first, second = await asyncio.gather(served.events(request), served.events(request))
    counts = [sum(event.HasField("progress") for event in each) for each in (first, second)]
    assert min(counts) >= 2
    # Who waited for the other's slot as well waited about twice as long.
    assert max(counts) >= min(counts) + 2


async def test_a_hung_engine_gets_no_heartbeats() -> None:
    """Heartbeats stop when the engine is silent: silence must mean trouble."""
    async with worker(
        scripted=paced(hang_after_tokens=0), progress_interval_s=0.02, engine_silence_s=0.1
    ) as served:
        call = served.inference.Generate(pb.GenerateRequest(text="x"), timeout=1.0)
        beats = 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for event in call:
                beats += event.HasField("progress")
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1 <= beats <= 8
        await served.until(running=0)


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


async def test_a_continuation_goes_on_at_its_offset() -> None:
    """A worker takes over a stream exactly where another one left it."""
    async with worker() as served:
        whole = ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=20)))
        text = "".join(map(scripted_text, whole[:7]))
        rest = await served.events(
            pb.GenerateRequest(
                text="x",
                max_tokens=20,
                continuation=pb.Continuation(delivered_token_ids=whole[:7], delivered_text=text),
            )
        )
    assert rest[1].delta.offset == 7
    assert ids_of(rest) == whole[7:]
    assert rest[-1].finished.usage.completion_tokens == 20


async def test_a_worker_describes_itself() -> None:
    """GetModel, ListModels and Tokenize agree, and every start is a new epoch."""
    epochs = set()
    for _ in range(2):
        async with worker(name="w9", model_name="toy") as served:
            model = await served.control.GetModel(worker_pb2.GetModelRequest(include_files=True))
            listed = (await served.inference.ListModels(pb.ListModelsRequest())).models
            tokens = await served.inference.Tokenize(pb.TokenizeRequest(text="hé"))
            epochs.add(model.epoch)
            assert (await served.load()).epoch == model.epoch
    assert len(epochs) == 2
    assert (model.worker, model.name, model.engine) == ("w9", "toy", "scripted")
    assert [(each.name, each.revision) for each in listed] == [("toy", model.revision)]
    assert list(tokens.token_ids) == list("hé".encode())
    assert tokens.context_length == model.context_length


async def test_one_span_and_the_metrics_of_a_generation() -> None:
    """The engine's part is a child of the server span, ended, with GenAI attributes."""
    async with worker() as served:
        await served.events(pb.GenerateRequest(text="hello", max_tokens=6))
        with pytest.raises(NotFound):
            await served.events(pb.GenerateRequest(text="hello", adapter="nowhere"))
        recorded = served.metrics.get_metrics_data()
    spans = {span.name: span for span in served.spans.get_finished_spans()}
    span = spans["chat scripted"]
    parent = spans["sidecache.v1.InferenceService/Generate"]
    assert span.parent is not None
    assert span.parent.span_id in {
        each.context.span_id
        for each in served.spans.get_finished_spans()
        if each.context and each.name == parent.name
    }
    attributes = dict(span.attributes or {})
    assert attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 5
    assert attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 6
    assert attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert "hello" not in str(attributes)
    assert recorded is not None
    kinds = {
        metric.name
        for resource in recorded.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, names.TOKENS, names.QUEUE_DEPTH} <= kinds


async def test_a_cancelled_generation_ends_its_span() -> None:
    """However a stream ends, its span ends too, and says so."""
    async with worker(scripted=paced()) as served:
        call = served.inference.Generate(pb.GenerateRequest(text="x", max_tokens=ENDLESS))
        await call.read()
        call.cancel()
        await served.until(running=0)
        async with asyncio.timeout(2):
            while not any(s.name == "chat scripted" for s in served.spans.get_finished_spans()):
                await asyncio.sleep(0)
        (span,) = [s for s in served.spans.get_finished_spans() if s.name == "chat scripted"]
    assert (span.attributes or {})[names.ERROR_TYPE] == "CancelledError"
    assert span.status.status_code is StatusCode.UNSET


def chat(*turns: tuple[str, str], **more: Any) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **more))


def sampled(**values: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", sampling=pb.SamplingParameters(**values))


BAD: dict[str, tuple[pb.GenerateRequest, type[SidecacheError], str]] = {
    "no prompt": (pb.GenerateRequest(), InvalidRequest, "prompt"),
    "empty text": (pb.GenerateRequest(text=""), InvalidRequest, "text"),
    "empty chat": (chat(), InvalidRequest, "chat.messages"),
    "empty turn": (chat(("user", "")), InvalidRequest, "chat.messages[0].content"),
    "empty ids": (
        pb.GenerateRequest(token_ids=pb.TokenIds()), InvalidRequest, "token_ids.ids"),
    "unknown role": (chat(("user", "x"), ("boss", "x")), InvalidRequest, "chat.messages[1].role"),
    "tools without a template for them": (
        chat(("user", "x"), tools=[pb.Tool(name="t")]), InvalidRequest, "chat.tools"),
    "id out of the vocabulary": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 4096])),
        InvalidRequest, "token_ids.ids[1]"),
    "zero max_tokens": (
        pb.GenerateRequest(text="x", max_tokens=0), InvalidRequest, "max_tokens"),
    "huge max_tokens": (
        pb.GenerateRequest(text="x", max_tokens=2**32 - 1), PromptTooLong, "max_tokens"),
    "prompt over the context": (
        pb.GenerateRequest(text="x" * 9000), PromptTooLong, "prompt"),
    "prompt over the bytes": (
        pb.GenerateRequest(text="x" * 2_100_000), PromptTooLong, "text"),
    "zero n": (pb.GenerateRequest(text="x", n=0), InvalidRequest, "n"),
    "huge n": (pb.GenerateRequest(text="x", n=1000), InvalidRequest, "n"),
    "top logprobs": (pb.GenerateRequest(text="x", logprobs=3), InvalidRequest, "logprobs"),
    "empty stop": (pb.GenerateRequest(text="x", stop=["a", ""]), InvalidRequest, "stop[1]"),
    "long stop": (pb.GenerateRequest(text="x", stop=["a" * 999]), InvalidRequest, "stop[0]"),
    "many stops": (pb.GenerateRequest(text="x", stop=["a"] * 99), InvalidRequest, "stop"),
    "hot": (sampled(temperature=2.5), InvalidRequest, "sampling.temperature"),
    "NaN": (sampled(temperature=float("nan")), InvalidRequest, "sampling.temperature"),
    "top_p": (sampled(top_p=0), InvalidRequest, "sampling.top_p"),
    "presence": (sampled(presence_penalty=-3), InvalidRequest, "sampling.presence_penalty"),
    "frequency": (sampled(frequency_penalty=3), InvalidRequest, "sampling.frequency_penalty"),
    "repetition": (
        sampled(repetition_penalty=0), InvalidRequest, "sampling.repetition_penalty"),
    "grammar": (
        pb.GenerateRequest(text="x", guided=pb.GuidedDecoding(regex="a")),
        InvalidRequest, "guided.regex"),
    "continued choices": (
        pb.GenerateRequest(text="x", n=2, continuation=pb.Continuation(delivered_token_ids=[1])),
        InvalidRequest, "n"),
    "continued nonsense": (
        pb.GenerateRequest(text="x", continuation=pb.Continuation(delivered_token_ids=[9999])),
        InvalidRequest, "continuation.delivered_token_ids[0]"),
}  # fmt: skip


async def test_bad_input_is_refused_by_name() -> None:
    """Each bad field is named with what it may be, takes no slot, and the worker goes on."""
    async with worker() as served:
        for case, (request, error, field) in BAD.items():
            with pytest.raises(error) as refused:
                await served.events(request)
            assert isinstance(refused.value, InvalidRequest), case
            assert refused.value.field == field, case
            assert type(refused.value) is error, case
        assert (await served.load()).running_sequences == 0
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_over_long_prompts_name_both_numbers() -> None:
    """The caller learns how long the prompt is and how much fits."""
    async with worker(scripted=ScriptedSettings(context_length=100)) as served:
        with pytest.raises(PromptTooLong, match=r"150 tokens.*100"):
            await served.events(pb.GenerateRequest(text="x" * 150))
        with pytest.raises(PromptTooLong, match=r"50 .*60 tokens.*100.*40 are left"):
            await served.events(pb.GenerateRequest(text="x" * 60, max_tokens=50))


async def test_an_unknown_model_names_what_there_is() -> None:
    """ModelNotFound, with the model that is served."""
    async with worker() as served:
        with pytest.raises(ModelNotFound, match=r"'gpt-9'.*'scripted'"):
            await served.events(pb.GenerateRequest(model="gpt-9", text="x"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served.inference.Tokenize(pb.TokenizeRequest(model="gpt-9", text="x"))
        assert isinstance(from_rpc_error(error.value), ModelNotFound)


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x12\x02\xc3\x28"])
async def test_malformed_bytes_are_an_invalid_request(payload: bytes) -> None:
    """Bytes that are no message, or a string that is no UTF-8, are the caller's error."""
    async with worker() as served:
        raw: Any = served.channel.unary_stream("/sidecache.v1.InferenceService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in raw(payload):
                pass
        assert isinstance(from_rpc_error(error.value), InvalidRequest)
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_a_huge_message_is_refused() -> None:
    """64 MiB are refused by the transport, and the worker goes on."""
    async with worker() as served:
        with pytest.raises(Overloaded):
            await served.events(pb.GenerateRequest(text="x" * 64 * 1024 * 1024))
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_what_this_release_does_not_serve_says_so() -> None:
    """Attach and KV events answer Unsupported, in words."""
    async with worker() as served:
        for call in (
            served.inference.Attach(pb.AttachRequest(request_id="r")),
            served.control.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                async for _ in call:
                    pass
            assert isinstance(from_rpc_error(error.value), Unsupported)


async def test_a_busy_port_is_a_setup_error() -> None:
    """The address that is taken is named."""
    async with worker() as served:
        with pytest.raises(SetupError, match=served.address.rpartition(":")[2]):
            async with worker(server=ServerSettings(listen=served.address)):
                pass
