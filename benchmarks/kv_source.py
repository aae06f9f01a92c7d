"""A worker that serves nothing but KV events, as many a second as it is told.

Settings come from the environment, as those of our services do: KV_SOURCE_BLOCKS_PER_S
and KV_SOURCE_BATCH_BLOCKS. Every second message takes away what came 64 messages ago.
"""

import asyncio
import hashlib
import os
import random
from collections import deque
from pathlib import Path
from typing import Any

import grpc
import uvloop

from sidecache.kv_blocks import pack_hashes
from sidecache.v1 import worker_pb2 as pb
from sidecache.v1 import worker_pb2_grpc

MODEL, REVISION = "bytes", "1"
CONTEXT_LENGTH = 1 << 20
_TICK_S = 0.01
_KEPT_MESSAGES = 64
_TOKENIZER = b'{"kind":"utf8-bytes","chat":"role: content"}'


class KvSource(worker_pb2_grpc.WorkerServiceServicer):
    """Facts, and a stream of blocks that come and go."""

    def __init__(self, blocks_per_s: int, batch_blocks: int) -> None:
        self._messages_a_tick = max(1, round(blocks_per_s * _TICK_S / batch_blocks))
        self._paused = blocks_per_s == 0
        self._batch_blocks = batch_blocks

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        answer = pb.GetModelResponse(
            name=MODEL,
            revision=REVISION,
            epoch="1",
            block_size=32,
            context_length=CONTEXT_LENGTH,
            vocabulary_size=256,
            tokenizer_fingerprint=hashlib.sha256(_TOKENIZER).hexdigest(),
            chat_template_fingerprint=hashlib.sha256(b"role: content").hexdigest(),
        )
        if request.include_files:
            answer.tokenizer_files.add(name="sidecache-byte-tokenizer.json", content=_TOKENIZER)
        return answer

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        return pb.GetLoadResponse(epoch="1")

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        return pb.DrainResponse()

    async def SubscribeKvEvents(
        self,
        request: pb.SubscribeKvEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        await context.write(pb.SubscribeKvEventsResponse(epoch="1", snapshot=pb.KvSnapshot()))
        chance = random.Random(1)  # noqa: S311 - repeatable, no secret
        held: deque[bytes] = deque()
        sequence, loop = 0, asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            for _ in range(0 if self._paused else self._messages_a_tick):
                sequence += 1
                event = pb.SubscribeKvEventsResponse(epoch="1", sequence=sequence)
                if sequence % 2 or len(held) < _KEPT_MESSAGES:
                    names = [chance.getrandbits(64) for _ in range(self._batch_blocks)]
                    held.append(pack_hashes(names))
                    event.stored.block_hashes = held[-1]
                else:
                    event.removed.block_hashes = held.popleft()
                await context.write(event)
            due_s += _TICK_S
            await asyncio.sleep(due_s - loop.time())


async def serve(source: KvSource, listen: str, ready_file: Path) -> None:
    """Serve until terminated; the address is written to ``ready_file``."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(source, server)
    host, _, _ = listen.rpartition(":")
    port = server.add_insecure_port(listen)
    await server.start()
    written = ready_file.with_suffix(".part")
    written.write_text(f"{host}:{port}")
    written.rename(ready_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(
        serve(
            KvSource(
                int(os.environ["KV_SOURCE_BLOCKS_PER_S"]),
                int(os.environ["KV_SOURCE_BATCH_BLOCKS"]),
            ),
            os.environ["KV_SOURCE_SERVER__LISTEN"],
            Path(os.environ["KV_SOURCE_SERVER__READY_FILE"]),
        )
    )
