"""SubscribeKvEvents over gRPC: snapshot, changes, gaps, epochs and the end."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from inference_svc.engine import ModelFacts
from inference_svc.engines.scripted import ScriptedEngine
from inference_svc.kv_ledger import KvLedger
from inference_svc.serve import serve_engine
from inference_svc.settings import ScriptedSettings, WorkerSettings
from inference_svc.slots import Slots
from sidecache.errors import Unavailable, Unsupported, from_rpc_error
from sidecache.kv_blocks import BlockHasher, unpack_hashes
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from sidecache.v1.worker_pb2_grpc import WorkerServiceStub
from tests.fixtures.stack import quiet_telemetry
from tests.fixtures.worker import Worker, paced, worker

BLOCK_SIZE = 32
TEXT = "".join(f"{number:04d}" for number in range(40))  # 160 bytes: five blocks


@dataclass
class Follower:
    """One subscription, and what it makes of it."""

    call: Any
    held: set[int] = field(default_factory=set)
    epoch: str = ""
    last: int = 0
    kinds: list[str] = field(default_factory=list)

    async def read(self) -> bool:
        """Take one message; False at the stream's end."""
        message = await self.call.read()
        if message is grpc.aio.EOF:
            return False
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            if not self.kinds or self.kinds[-1] != "snapshot":
                self.held.clear()
            self.held |= set(unpack_hashes(message.snapshot.block_hashes))
        else:
            assert message.sequence == self.last + 1
            if kind == "stored":
                self.held |= set(unpack_hashes(message.stored.block_hashes))
            elif kind == "removed":
                self.held -= set(unpack_hashes(message.removed.block_hashes))
        self.epoch, self.last = message.epoch, message.sequence
        self.kinds.append(kind)
        return True

    async def until(self, names: list[int], timeout_s: float = 5) -> None:
        """Read until these blocks are held."""
        async with asyncio.timeout(timeout_s):
            while not self.held.issuperset(names):
                assert await self.read(), "the stream ended"


def follow(served: Worker, epoch: str = "", start_sequence: int = 0) -> Follower:
    request = worker_pb2.SubscribeKvEventsRequest(epoch=epoch, start_sequence=start_sequence)
    return Follower(served.control.SubscribeKvEvents(request))


def names_of(text: str, salt: str = "") -> list[int]:
    return BlockHasher(BLOCK_SIZE, salt=salt).hashes(tuple(text.encode()))


async def generate(served: Worker, text: str, **more: Any) -> pb.Usage:
    events = await served.events(pb.GenerateRequest(text=text, max_tokens=2, **more))
    return events[-1].finished.usage


async def test_a_snapshot_then_every_change() -> None:
    """A follower learns at once what is held, and then of each prompt as it is prefilled."""
    async with worker() as served:
        await generate(served, TEXT)
        follower = follow(served)
        assert await follower.read()
        assert follower.kinds == ["snapshot"]
        assert follower.held == set(names_of(TEXT))
        model = await served.control.GetModel(worker_pb2.GetModelRequest())
        assert follower.epoch == model.epoch
        await generate(served, "x" * 100, cache_salt="acme")
        await follower.until(names_of("x" * 100, "acme"))
        assert follower.kinds == ["snapshot", "stored"]
        assert (await generate(served, TEXT)).cached_prompt_tokens == 159
        assert (await generate(served, TEXT + "!")).cached_prompt_tokens == 160


async def test_an_empty_cache_has_a_snapshot_too() -> None:
    """So that a follower knows it has begun."""
    async with worker() as served:
        follower = follow(served)
        assert await follower.read()
        assert (follower.kinds, follower.last, follower.held) == (["snapshot"], 0, set())


async def test_a_follower_goes_on_where_it_was() -> None:
    """With epoch and number it gets the changes it missed, and no snapshot."""
    async with worker() as served:
        follower = follow(served)
        await follower.read()
        follower.call.cancel()
        await generate(served, TEXT)
        again = follow(served, follower.epoch, follower.last + 1)
        again.last = follower.last
        await again.until(names_of(TEXT))
        assert again.kinds == ["stored"]


async def test_each_message_says_how_far_the_worker_is() -> None:
    """So a follower that reads old changes knows how many are still to come."""
    async with worker() as served:
        follower = follow(served)
        await follower.read()
        for letter in "abc":
            await generate(served, letter * 100)
        late = follow(served, follower.epoch, 1).call
        message = first = await late.read()
        assert first.sequence == 1
        assert first.latest_sequence >= 3
        while message.sequence < first.latest_sequence:
            message = await late.read()
        assert message.latest_sequence == message.sequence


async def test_a_gap_brings_a_snapshot() -> None:
    """Whoever asks for what is no longer kept, or was never said, begins anew."""
    settings = ScriptedSettings(kv_blocks=8)
    async with worker(scripted=settings) as served:
        follower = follow(served)
        await follower.read()
        follower.call.cancel()
        for start_sequence in (9999, 2**63):
            other = follow(served, follower.epoch, start_sequence)
            await other.read()
            assert other.kinds == ["snapshot"]
            other.call.cancel()


async def test_a_restart_is_another_epoch() -> None:
    """What a follower knew of the worker before is void: it gets a snapshot of the new one."""
    async with worker() as served:
        await generate(served, TEXT)
        before = follow(served)
        await before.read()
    async with worker() as served:
        after = follow(served, before.epoch, before.last + 1)
        await after.read()
    assert after.kinds == ["snapshot"]
    assert after.epoch != before.epoch
    assert after.held == set()


async def test_evicted_blocks_are_told() -> None:
    """Followers know no more blocks than the cache holds, and GetLoad says how many that is."""
    async with worker(scripted=ScriptedSettings(kv_blocks=8)) as served:
        follower = follow(served)
        texts = [f"{number} " * 100 for number in range(10, 20)]
        for text in texts:
            await generate(served, text[:160])
            await follower.until(names_of(text[:160]))
            assert len(follower.held) <= 8
        load = await served.load()
        assert load.kv_blocks == 8
        assert load.kv_cache_usage == 0
        assert "removed" in follower.kinds


async def test_a_drain_ends_the_stream() -> None:
    """Followers are let go in order, new ones refused, and the drain does not wait for them."""
    async with worker(scripted=paced()) as served:
        follower = follow(served)
        await follower.read()
        await asyncio.wait_for(served.control.Drain(worker_pb2.DrainRequest()), 5)
        assert not await follower.read()
        assert await follower.call.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await follow(served).read()
        assert isinstance(from_rpc_error(refused.value), Unavailable)


async def test_a_stopping_server_does_not_wait_for_followers() -> None:
    """A subscription has no end of its own, so the server ends it before it waits."""
    async with worker() as served:
        follower = follow(served)
        await follower.read()
        await asyncio.wait_for(served.server.drain(60), 5)
        assert not await follower.read()


async def test_a_dead_engine_ends_the_stream() -> None:
    """Its cache is gone with it."""
    async with worker(scripted=paced(die_after_tokens=1)) as served:
        follower = follow(served)
        await follower.read()
        with pytest.raises(Unavailable):
            await generate(served, TEXT)
        async with asyncio.timeout(5):
            while await follower.read():
                pass


class SilentEngine(ScriptedEngine):
    """Tells nobody of its KV cache."""

    @property
    def facts(self) -> ModelFacts:
        facts = super().facts
        return replace(facts, capabilities=replace(facts.capabilities, kv_events=False))


async def test_an_engine_without_events_says_so() -> None:
    """UNIMPLEMENTED, so that nobody waits for events that never come."""
    telemetry = quiet_telemetry("sidecache-worker")
    engine = SilentEngine(ScriptedSettings(), Slots(4, 4))
    await engine.load()
    async with (
        serve_engine(engine, WorkerSettings(), telemetry, KvLedger()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Any = WorkerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Follower(stub.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest())).read()
    assert isinstance(from_rpc_error(refused.value), Unsupported)
    await engine.aclose()
    await telemetry.aclose()


async def test_retained_prefixes_outlive_others() -> None:
    """A system prompt asked to be kept is still cached after much else went through."""
    system = pb.ChatMessage(role="system", content="Be brief. " * 20)

    def chat(question: str, **more: Any) -> pb.GenerateRequest:
        turns = [system, pb.ChatMessage(role="user", content=question)]
        return pb.GenerateRequest(chat=pb.Chat(messages=turns), max_tokens=1, **more)

    retention = pb.PrefixRetention(leading_messages=1, priority=80)
    async with worker(scripted=ScriptedSettings(kv_blocks=16)) as served:
        await served.events(chat("first", retention=retention))
        for number in range(20):
            await generate(served, f"{number:02d}" * 150)
        again = await served.events(chat("second"))
    rendered = len("system: ") + len(system.content) + len("\n")
    kept = rendered // BLOCK_SIZE * BLOCK_SIZE
    assert again[-1].finished.usage.cached_prompt_tokens == kept


async def test_cached_tokens_come_sooner() -> None:
    """Prefill takes its time for what is not cached, one prompt after another."""
    loop = asyncio.get_running_loop()
    async with worker(scripted=ScriptedSettings(prefill_tokens_per_s=400)) as served:

        async def timed() -> float:
            began = loop.time()
            await generate(served, TEXT)
            return loop.time() - began

        cold, warm = await timed(), await timed()
    assert cold >= 160 / 400
    assert warm < cold / 2
