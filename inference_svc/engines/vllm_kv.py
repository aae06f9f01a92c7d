"""vLLM's KV events, heard over ZeroMQ.

vLLM numbers its batches of events and keeps the last ones for whoever missed one.
Frames: topic, sequence number (8 bytes, big endian), msgpack. A replay is asked for with
the first number wanted and ends with number -1; releases before 0.32 leave the topic out
of it. Source: vllm/distributed/kv_events.py.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from inference_svc.engines.vllm_blocks import BlockNames

logger = logging.getLogger(__name__)

_END = (-1).to_bytes(8, "big", signed=True)
_REPLAY_TIMEOUT_S = 2.0
_MAX_WAITING_BATCHES = 100_000


class KvEventStream:
    """Reads the publisher's batches in order, asking again for those it missed.

    Args:
        folder: an empty one, for the publisher's two sockets.
        resync: called when batches are lost for good or a block's parent is unknown;
            it may empty the engine's cache, so that both sides know the same again.
    """

    def __init__(self, folder: Path, resync: Callable[[], Awaitable[None]]) -> None:
        self.endpoints = (f"ipc://{folder}/events", f"ipc://{folder}/replay")
        self._resync = resync
        self._names: BlockNames  # of connect()
        self._next = 0
        self._task: asyncio.Task[None] | None = None
        self._context = zmq.asyncio.Context()
        self._decoder = msgspec.msgpack.Decoder()

    def connect(self, names: BlockNames) -> None:
        """Begin to listen; what was published before is asked for."""
        self._names = names
        socket = self._context.socket(zmq.SUB)
        socket.set_hwm(_MAX_WAITING_BATCHES)
        socket.connect(self.endpoints[0])
        socket.subscribe(b"")
        self._task = asyncio.create_task(self._read(socket), name="vllm-kv-events")

    async def aclose(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        self._context.destroy(linger=0)

    async def _read(self, socket: Any) -> None:
        # A subscription takes a moment to arrive; what was published meanwhile is replayed.
        await self._replay(0)
        while True:
            *_, number, payload = await socket.recv_multipart()
            await self._take(int.from_bytes(number, "big"), payload)

    async def _take(self, number: int, payload: bytes) -> None:
        if number > self._next:
            await self._replay(self._next)
        await self._replayed(number, payload)

    async def _apply(self, payload: bytes) -> None:
        self._next += 1
        try:
            known = [self._names.apply(event) for event in self._decoder.decode(payload)[1]]
        except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
            logger.error("a KV event could not be read: %s", error)
            await self._start_over()
        else:
            if not all(known):
                await self._resync()

    async def _replay(self, first: int) -> None:
        """Ask for batches from this number on; as far as the publisher still has them."""
        # The publisher answers one question with many messages, which REQ would not take.
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.connect(self.endpoints[1])
            await socket.send_multipart((b"", first.to_bytes(8, "big")))
            async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                while True:
                    *_, number, payload = await socket.recv_multipart()
                    if number == _END:
                        return
                    await self._replayed(int.from_bytes(number, "big"), payload)
        except TimeoutError:
            logger.warning("the engine did not replay its KV events in time")
        finally:
            socket.close(linger=0)

    async def _replayed(self, number: int, payload: bytes) -> None:
        """What the publisher still has; it begins behind a loss, if there was one."""
        if number > self._next:
            logger.warning("KV events %d to %d are lost", self._next, number - 1)
            await self._start_over()
            self._next = number
        if number == self._next:
            await self._apply(payload)

    async def _start_over(self) -> None:
        self._names.clear()
        await self._resync()
