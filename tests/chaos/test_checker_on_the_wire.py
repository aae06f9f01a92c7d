"""The checker against servers that really lie, over real gRPC and a real scripted engine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import pytest

from chaos.checker import check
from chaos.faults import Direction, Reset, Slicer
from chaos.history import History
from chaos.proxy import FaultProxy
from chaos.recorder import Recorder
from chaos.reference import ScriptedReference
from chaos.sabotage import LIES, AnswerSwapper, Lie, Saboteur
from chaos.violations import ForeignAnswer, Violation
from inference_svc.serve import serve
from inference_svc.settings import ScriptedSettings, WorkerSettings
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

REFERENCE = ScriptedReference()
Serve = Callable[[inference_pb2_grpc.InferenceServiceServicer], Awaitable[grpc.aio.Channel]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def worker_address(stack: AsyncExitStack) -> str:
    """A real worker whose tokens come one a message."""
    settings = WorkerSettings(
        engine="scripted",
        model_name="scripted",
        coalesce_max_tokens=1,
        scripted=ScriptedSettings(tokens_per_s=2000),
    )
    telemetry = Telemetry.start("sidecache-worker", TelemetrySettings())
    stack.push_async_callback(telemetry.aclose)
    running = await stack.enter_async_context(serve(settings, telemetry))
    return running.address


@pytest.fixture
async def worker(stack: AsyncExitStack, worker_address: str) -> grpc.aio.Channel:
    return await stack.enter_async_context(grpc.aio.insecure_channel(worker_address))


@pytest.fixture
def put_before(stack: AsyncExitStack) -> Serve:
    """Serve something between client and worker; returns a channel to it."""

    async def start(servicer: inference_pb2_grpc.InferenceServiceServicer) -> grpc.aio.Channel:
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return await stack.enter_async_context(channel)

    return start


def ask(prompt: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=prompt, max_tokens=12)


async def test_a_real_worker_passes(worker: grpc.aio.Channel) -> None:
    """What the scripted engine really streams is what the checker expects of it."""
    recorder = Recorder(worker, History(), tenant="a")
    requests = [
        ask("plain"),
        pb.GenerateRequest(text="choices", max_tokens=9, n=3),
        pb.GenerateRequest(text="stop", max_tokens=200, stop=["a ", "zu"]),
        pb.GenerateRequest(
            text="seed", max_tokens=9, sampling=pb.SamplingParameters(seed=5, temperature=1)
        ),
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), max_tokens=9),
        pb.GenerateRequest(
            chat=pb.Chat(
                messages=[
                    pb.ChatMessage(role="system", content="é"),
                    pb.ChatMessage(role="user", content="hi"),
                ]
            ),
            max_tokens=9,
        ),
        pb.GenerateRequest(text="default length"),
        pb.GenerateRequest(text="refused", max_tokens=0),
        pb.GenerateRequest(text="refused", n=2**32 - 1, max_tokens=2**32 - 1),
    ]
    for request in requests:
        await recorder.generate(request)
    report = check(recorder.history.calls, REFERENCE)
    assert report.violations == ()
    assert report.figures.codes == {"OK": len(requests) - 2, "INVALID_ARGUMENT": 2}


@pytest.mark.parametrize(("lie", "violation"), LIES.items(), ids=lambda x: x.__name__)
async def test_a_lie_on_the_wire_is_caught(
    worker: grpc.aio.Channel, put_before: Serve, lie: Lie, violation: type[Violation]
) -> None:
    """The same server passes while it tells the truth and is convicted once it lies."""
    saboteur = Saboteur(worker)
    recorder = Recorder(await put_before(saboteur), History(), tenant="a")
    await recorder.generate(ask("true"))
    assert check(recorder.history.calls, REFERENCE).ok
    saboteur.lie = lie
    await recorder.generate(ask("false"))
    assert saboteur.streams == 1
    report = check(recorder.history.calls, REFERENCE)
    assert violation in report.kinds()
    assert {found.call for found in report.violations} == {1}


async def test_another_callers_answer_is_caught(
    worker: grpc.aio.Channel, put_before: Serve
) -> None:
    """A gateway that mixes up two streams is convicted of whose answer it gave away."""
    channel = await put_before(AnswerSwapper(worker))
    history = History()
    for tenant, prompt in (("a", "first"), ("b", "second")):
        await Recorder(channel, history, tenant=tenant).generate(ask(prompt))
    assert ForeignAnswer(1, 0, "a") in check(history.calls, REFERENCE).violations


async def test_the_recorder_keeps_no_more_than_its_bound(worker: grpc.aio.Channel) -> None:
    """A stream longer than the history keeps is given up, and the record says so."""
    recorder = Recorder(worker, History(max_events=4), tenant="a")
    call = await recorder.generate(pb.GenerateRequest(text="long", max_tokens=1000))
    assert len(list(call.events())) == 4
    assert call.ended is not None
    assert call.ended.by_client
    assert check([call], REFERENCE).ok  # as far as it was seen


async def test_a_recording_that_is_cancelled_says_so(worker: grpc.aio.Channel) -> None:
    """A client that gives up leaves a record with an end, and what it saw is still checked."""
    recorder = Recorder(worker, History(), tenant="a")
    request = pb.GenerateRequest(text="abandoned", max_tokens=8000)
    has_events = asyncio.Event()
    recording = asyncio.create_task(recorder.generate(request, watch=lambda _: has_events.set()))
    await has_events.wait()
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    [call] = recorder.history.calls
    assert (call.code, call.ended and call.ended.by_client) == ("CANCELLED", True)
    assert check([call], REFERENCE).ok


async def test_a_reset_mid_stream_is_an_error_and_not_a_violation(
    worker_address: str, stack: AsyncExitStack
) -> None:
    """A torn connection ends in one status; what came before it is still checked, and right."""
    proxy = await stack.enter_async_context(FaultProxy.open(worker_address))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(proxy.address))
    recorder = Recorder(channel, History(), tenant="a")
    await recorder.generate(ask("whole"))
    with proxy.during(Slicer(100), Direction.DOWN) as slicer:
        await recorder.generate(ask("sliced"))
    with proxy.during(Reset(after_bytes=400), Direction.DOWN) as reset:
        torn = await recorder.generate(ask("torn"))
    assert slicer.struck
    assert reset.struck
    assert torn.code == "UNAVAILABLE"
    report = check(recorder.history.calls, REFERENCE)
    assert report.violations == ()
    assert 24 < report.figures.tokens < 36
