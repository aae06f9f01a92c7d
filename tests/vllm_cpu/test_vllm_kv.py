"""KV events from vLLM's own publisher: in order, replayed at a gap, begun anew when lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from vllm.distributed.kv_events import BlockStored, KVEventBatch, ZmqEventPublisher

from inference_svc.engines.vllm_blocks import BlockNames
from inference_svc.engines.vllm_kv import KvEventStream
from inference_svc.kv_events import BlocksStored, CacheCleared, KvEvent
from sidecache.kv_blocks import BlockHasher

SIZE = 4


def batch(number: int) -> KVEventBatch:
    """One root block, another for each number."""
    event = BlockStored(
        block_hashes=[number], parent_block_hash=None, token_ids=[number] * SIZE,
        block_size=SIZE, lora_id=None, medium="GPU", lora_name=None,
    )  # fmt: skip
    return KVEventBatch(ts=time.time(), events=[event])


def block(number: int) -> BlocksStored:
    return BlocksStored(tuple(BlockHasher(SIZE).hashes([number] * SIZE)))


class Listening:
    """An event stream, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.told: list[KvEvent] = []
        self.resyncs = 0
        self.stream = KvEventStream(folder, self._resync)

    async def _resync(self) -> None:
        self.resyncs += 1

    async def until(self, event: KvEvent) -> None:
        async with asyncio.timeout(10):
            while event not in self.told:
                await asyncio.sleep(0.01)


@contextmanager
def publishing(listening: Listening, buffer_steps: int = 100) -> Iterator[ZmqEventPublisher]:
    """vLLM's publisher at the stream's endpoints."""
    publish, replay = listening.stream.endpoints
    publisher = ZmqEventPublisher(0, publish, replay, buffer_steps=buffer_steps)
    try:
        yield publisher
    finally:
        publisher.shutdown()


@asynccontextmanager
async def connected(listening: Listening) -> AsyncIterator[None]:
    listening.stream.connect(BlockNames(SIZE, 100, listening.told.append))
    try:
        yield
    finally:
        await listening.stream.aclose()


@pytest.fixture
def listening(tmp_path_factory: pytest.TempPathFactory) -> Listening:
    return Listening(tmp_path_factory.mktemp("kv"))


async def test_what_was_published_before_is_replayed(listening: Listening) -> None:
    """Whoever connects late hears everything, once and in order."""
    with publishing(listening) as publisher:
        for number in range(5):
            publisher.publish(batch(number))
        async with connected(listening):
            await listening.until(block(4))
            publisher.publish(batch(5))
            await listening.until(block(5))
    assert listening.told == [block(number) for number in range(6)]
    assert listening.resyncs == 0


async def test_a_gap_is_replayed(listening: Listening) -> None:
    """A batch that was missed is asked for again, and nothing is told twice."""
    with publishing(listening) as publisher:
        publisher.publish(batch(0))
        async with connected(listening):
            await listening.until(block(0))
            # As if batches 1 to 3 had been dropped on the way.
            apply = listening.stream._take
            dropped: list[int] = []

            async def losing(number: int, payload: bytes) -> None:
                if number < 4 and len(dropped) < 3:
                    dropped.append(number)
                else:
                    await apply(number, payload)

            listening.stream._take = losing  # type: ignore[method-assign]
            for number in range(1, 6):
                publisher.publish(batch(number))
            await listening.until(block(5))
    assert dropped == [1, 2, 3]
    assert listening.told == [block(number) for number in range(6)]


async def test_what_is_lost_for_good_begins_anew(listening: Listening) -> None:
    """When not even the publisher has it any more: cleared, and the engine is asked to."""
    with publishing(listening, buffer_steps=2) as publisher:
        for number in range(10):
            publisher.publish(batch(number))
        async with asyncio.timeout(10):
            while len(publisher._buffer) < 2 or publisher._event_queue.qsize():
                await asyncio.sleep(0.01)
        async with connected(listening):
            await listening.until(CacheCleared())
            publisher.publish(batch(10))
            await listening.until(block(10))
    assert listening.told[0] == CacheCleared()
    assert listening.resyncs == 1


async def test_garbage_is_survived(listening: Listening) -> None:
    """A message that is no batch clears what is known; later ones are heard."""
    publish, replay = listening.stream.endpoints
    context: Any = zmq.asyncio.Context()
    publisher, router = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
    publisher.bind(publish)
    router.bind(replay)
    encode = msgspec.msgpack.Encoder().encode
    async with connected(listening):
        identity, *_ = await router.recv_multipart()
        # 0.25 leaves the topic out of what it replays.
        await router.send_multipart((identity, b"", (0).to_bytes(8, "big"), encode(batch(0))))
        await router.send_multipart((identity, b"", (-1).to_bytes(8, "big", signed=True), b""))
        await publisher.recv()  # the subscription
        await publisher.send_multipart((b"", (1).to_bytes(8, "big"), b"\xc1 no msgpack"))
        await publisher.send_multipart((b"", (2).to_bytes(8, "big"), encode(batch(2))))
        await listening.until(block(2))
    context.destroy(linger=0)
    assert listening.told == [block(0), CacheCleared(), block(2)]
