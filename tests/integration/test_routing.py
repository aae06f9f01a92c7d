"""Where streams go: real routers in front of real workers."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from inference_svc.engine import GenerationRequest
from inference_svc.engines.scripted import prompt_seed, scripted_token
from observability.channel import open_channel
from observability.metrics.router import RoutingMetrics
from observability.settings import ChannelSettings
from router.dispatch import Dispatcher
from router.model import ServedModel
from router.outliers import Outliers
from router.pool import WorkerPool
from router.prefix import PrefixHint
from router.recovery import Recovery
from router.relay import Relay
from router.routing.choice import make_policy
from router.settings import (
    LimitSettings,
    OutlierSettings,
    PoolSettings,
    QuarantineSettings,
    RetrySettings,
    RoutingSettings,
)
from router.tape import Tape
from router.ticket import Ticket
from sidecache.client import CacheControl, ChatMessage, SidecacheClient
from sidecache.errors import InvalidRequest
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, Worker, quiet_telemetry, scripted_stack, scripted_worker

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
LONG = "You are a patient teacher of many things. " * 60
SLOW = {"scripted": {"ttft_s": 30.0}}


async def eventually(is_so: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for another task's doing, bounded."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.001)


async def ask(client: SidecacheClient, *turns: str) -> str:
    """The worker that answers a chat whose first message is a system prompt."""
    roles = ("user", "assistant")
    chat = [ChatMessage(role="system", content="Be kind.")]
    chat += [ChatMessage(role=roles[n % 2], content=turn) for n, turn in enumerate(turns)]
    return (await client.complete(chat, max_tokens=2, cache=BYPASS)).worker


async def test_conversations_stay_and_new_ones_are_spread(tmp_path: Path) -> None:
    """Without a word from any sidecar, and although all share their system prompt."""
    async with scripted_stack(tmp_path, workers=({}, {}, {}), with_cache=False) as stack:
        first = {n: await ask(stack.client, f"{n}: {LONG}") for n in range(12)}
        spread = Counter(first.values())
        assert len(spread) == 3
        assert max(spread.values()) <= 6
        for n, worker in first.items():
            assert await ask(stack.client, f"{n}: {LONG}", "An answer.", "Go on.") == worker


async def test_a_busy_worker_is_passed_over(tmp_path: Path) -> None:
    """Other routers' streams count, as soon as the worker has been asked for its load."""
    routing = {"routing": {"load_interval_s": 0.02}}
    async with (
        scripted_stack(
            tmp_path, workers=({**SLOW, "max_sequences": 1}, {}), with_cache=False, router_=routing
        ) as stack,
        SidecacheClient(stack.workers[0].server.address) as elsewhere,
        asyncio.TaskGroup() as tasks,
    ):
        others = [
            tasks.create_task(elsewhere.complete(f"{n}: {LONG}", max_tokens=1)) for n in range(3)
        ]
        engine = stack.workers[0].engine
        await eventually(lambda: engine.load_figures().waiting_sequences == 2)
        async with asyncio.timeout(5):
            # Until then a stream may still be sent there; it is given up.
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        answers = [await ask(stack.client, f"{n}: new") for n in range(4)]
                        break
        assert set(answers) == {"w2"}
        for other in others:
            other.cancel()


@asynccontextmanager
async def relay_to(
    workers: list[Worker], **routing: Any
) -> AsyncIterator[tuple[Relay, WorkerPool, ServedModel]]:
    """The router's pool and relay without its door, so that a test can bring the hint."""
    telemetry = quiet_telemetry("sidecache-router")
    settings = RoutingSettings(**routing)
    clock = asyncio.get_running_loop().time
    pool = WorkerPool(
        [worker.server.address for worker in workers],
        PoolSettings(),
        settings,
        Dispatcher(make_policy(settings.policy), settings, clock),
        lambda address: open_channel(address, telemetry, ChannelSettings()),
        clock,
    )
    running = asyncio.create_task(pool.run())
    try:
        await pool.wait_for_first_contact()
        outliers = Outliers(OutlierSettings(), clock)
        recovery = Recovery(RetrySettings(), QuarantineSettings(), outliers, telemetry.meter, clock)
        metrics = RoutingMetrics(telemetry.meter)
        yield Relay(pool, LimitSettings(), settings, recovery, metrics), pool, pool.model("")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await telemetry.aclose()


class Listener:
    """A client: keeps what it is sent."""

    def __init__(self) -> None:
        self.events: list[pb.GenerateResponse] = []

    async def write(self, message: pb.GenerateResponse, /) -> None:
        self.events.append(message)

    @property
    def ids(self) -> list[int]:
        return [i for event in self.events for i in event.delta.token_ids]


def ticket_of(model: ServedModel, request: pb.GenerateRequest) -> Ticket:
    return Ticket("id", "acme", request, model, None, False, False, 10.0, 0.0)


def hello(model: ServedModel) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role="user", content="hello")]
    return pb.GenerateRequest(model=model.name, chat=pb.Chat(messages=messages), max_tokens=5, n=1)


@pytest.mark.parametrize("forward", [True, False])
async def test_the_sidecars_token_ids_spare_the_worker_its_own(forward: bool) -> None:
    """They are sent where the fingerprints are the worker's; the answer is to those ids."""
    async with (
        scripted_worker("w1") as one,
        scripted_worker("w2") as two,
        relay_to([one, two], forward_token_ids=forward) as (relay, pool, model),
    ):
        worker = pool.ready_workers(model)[1]
        # Not what a worker would make of this chat, so the answer shows which were used.
        ids = (7, 8, 9)
        hint = PrefixHint(
            ids,
            worker.tokenizer_fingerprint,
            worker.chat_template_fingerprint,
            block_size=1,
            prompt_blocks=3,
            held={worker.address: 3},
        )
        ticket, listener = ticket_of(model, hello(model)), Listener()
        tape = Tape(ticket, 1 << 20, asyncio.get_running_loop().time)
        served_by = await relay.stream(ticket, tape, listener, hint)
        assert served_by is worker
        seen = list(ids) if forward else list(b"user: hello\nassistant:")
        assert listener.ids == [scripted_token(prompt_seed(seen), n) for n in range(5)]
        assert ticket.request.WhichOneof("prompt") == "chat"


async def test_a_shared_system_prompt_fills_no_worker_beyond_its_slots() -> None:
    """Prompts that share their beginning spread as soon as the first worker has no slot left."""
    slow = {"scripted": {"tokens_per_s": 10.0}, "max_sequences": 2}
    async with (
        scripted_worker("w1", **slow) as one,
        scripted_worker("w2", **slow) as two,
        scripted_worker("w3", **slow) as three,
        relay_to([one, two, three], load_interval_s=0.02) as (relay, pool, model),
    ):
        clock = asyncio.get_running_loop().time
        await eventually(lambda: all(worker.load.slots == 2 for worker in pool.workers))

        async def stream(n: int) -> None:
            request = hello(model)
            request.chat.messages.insert(0, pb.ChatMessage(role="system", content=LONG))
            request.chat.messages[-1].content = f"question {n}"
            ticket = ticket_of(model, request)
            await relay.stream(ticket, Tape(ticket, 1 << 20, clock), Listener())

        streams = [asyncio.create_task(stream(n)) for n in range(6)]
        await eventually(lambda: sum(worker.leases for worker in pool.workers) == 6)
        assert [worker.leases for worker in pool.workers] == [2, 2, 2]
        await asyncio.gather(*streams)


async def test_no_load_is_left_behind() -> None:
    """However a stream ends: whole, refused by its worker, lost or cancelled."""
    dying = {"scripted": {"die_after_tokens": 0}}
    async with (
        scripted_worker("w1", **dying) as one,
        scripted_worker("w2", **SLOW) as two,
        scripted_worker("w3") as three,
        relay_to([one, two, three], policy="round_robin") as (relay, pool, model),
    ):
        clock = asyncio.get_running_loop().time

        async def stream() -> None:
            ticket = ticket_of(model, hello(model))
            await relay.stream(ticket, Tape(ticket, 1 << 20, clock), Listener())

        streams = [asyncio.create_task(stream()) for _ in range(9)]
        await eventually(lambda: sum(task.done() for task in streams) >= 2)
        workers = pool.workers
        assert any(worker.load.queued for worker in workers)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        for worker in workers:
            load = worker.load
            assert (worker.leases, load.queued_tokens, load.active_tokens) == (0, 0, 0)
            assert load.pending_tokens == 0


@contextlib.contextmanager
def heard_by(worker: Worker) -> Iterator[list[GenerationRequest]]:
    """The requests that reach a worker's engine."""
    heard: list[GenerationRequest] = []
    submit = worker.engine.submit

    def listen(request: GenerationRequest) -> Any:
        heard.append(request)
        return submit(request)

    worker.engine.submit = listen  # type: ignore[method-assign]  # restored below
    try:
        yield heard
    finally:
        worker.engine.submit = submit  # type: ignore[method-assign]


async def send_raw(stack: Stack, request: pb.GenerateRequest) -> None:
    async with stack.client.stream(request) as stream:
        await stream.complete()


@pytest.mark.parametrize(
    ("retention", "field"),
    [
        (pb.PrefixRetention(), "retention.priority"),
        (pb.PrefixRetention(priority=101), "retention.priority"),
        (pb.PrefixRetention(priority=1, leading_messages=2), "retention.leading_messages"),
        (pb.PrefixRetention(priority=1, duration=Duration(seconds=0)), "retention.duration"),
        (pb.PrefixRetention(priority=1, duration=Duration(seconds=-5)), "retention.duration"),
    ],
)
async def test_a_senseless_retention_is_refused(
    tmp_path: Path, retention: pb.PrefixRetention, field: str
) -> None:
    """The field is named, and nothing reaches a worker."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        request = pb.GenerateRequest(max_tokens=1, retention=retention)
        request.chat.messages.add(role="user", content="hello")
        with heard_by(stack.workers[0]) as heard:
            with pytest.raises(InvalidRequest) as refused:
                await send_raw(stack, request)
            assert refused.value.field == field
            request.retention.CopyFrom(
                pb.PrefixRetention(priority=90, leading_messages=1, duration=Duration(seconds=5))
            )
            await send_raw(stack, request)
        assert len(heard) == 1


async def test_a_client_cannot_choose_its_salt(tmp_path: Path) -> None:
    """Or it could time another tenant's prompts."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        request = pb.GenerateRequest(text="x", max_tokens=1, cache_salt="another's")
        with pytest.raises(InvalidRequest) as refused:
            await send_raw(stack, request)
        assert refused.value.field == "cache_salt"


async def test_every_worker_behind_a_dead_load_report_still_serves(tmp_path: Path) -> None:
    """A worker that answers no GetLoad is one without a report, and nothing more."""

    def refuse() -> Any:
        raise RuntimeError("no figures")

    routing = {"routing": {"load_interval_s": 0.01}}
    async with scripted_stack(
        tmp_path, workers=({}, {}), with_cache=False, router_=routing
    ) as stack:
        for worker in stack.workers:
            worker.engine.load_figures = refuse  # type: ignore[method-assign]
        workers = {await ask(stack.client, f"{n}: {LONG}") for n in range(6)}
        assert workers == {"w1", "w2"}
