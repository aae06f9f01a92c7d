"""vLLM's KV events, heard over ZeroMQ and told in our own block names.

vLLM numbers its batches and keeps the last ones for whoever missed one. Its own block
hashes begin at a random root and depend on its settings, so they only serve to find a
block again: the names are :mod:`sidecache.kv_blocks`'s, computed from the token ids.

Frames: topic, sequence number (8 bytes, big endian), msgpack. A replay is asked for with
the first number wanted and ends with number -1; releases before 0.32 leave the topic out
of it. Source: vllm/distributed/kv_events.py.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvListener
from sidecache.kv_blocks import BlockHasher

logger = logging.getLogger(__name__)

_END = (-1).to_bytes(8, "big", signed=True)
_REPLAY_TIMEOUT_S = 2.0
_MAX_WAITING_BATCHES = 100_000
# Names remembered for each block the cache can hold: its own, and those of evicted ones.
_NAMES_A_BLOCK = 4

EngineHash = int | bytes


class BlockNames:
    """Translates vLLM's events; knows which blocks are held, and how they are called.

    A name follows from the block's content, so it outlives the block: a block is evicted
    while its copy in a running request goes on as a parent.

    Args:
        block_size: tokens in a block.
        max_blocks: blocks the cache can hold.
        tell: hears the translation.
    """

    def __init__(self, block_size: int, max_blocks: int, tell: KvListener) -> None:
        self._block_size = block_size
        self._max_blocks = max(1, max_blocks)
        self._tell = tell
        self._names: dict[EngineHash, int] = {}
        self._held: set[EngineHash] = set()
        self._hasher = BlockHasher(block_size)
        self.unnamed_blocks = 0

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, event: dict[str, Any]) -> bool:
        """Take one event, decoded.

        Returns:
            False if blocks had to be left out because their parent is not known.
        """
        match event.get("type"):
            case "BlockStored":
                return self._stored(event)
            case "BlockRemoved" if _on_device(event):
                self._removed(event["block_hashes"])
            case "AllBlocksCleared":
                self.clear()
        return True

    def clear(self) -> None:
        """Nothing is held any more; say so."""
        self._held.clear()
        self._tell(CacheCleared())

    def _stored(self, event: dict[str, Any]) -> bool:
        if not self._can_name(event):
            return True
        hashes = event["block_hashes"]
        parent: int | None = None
        hasher = self._hasher
        if event["parent_block_hash"] is None:
            hasher = BlockHasher(self._block_size, *_adapter_and_salt(event))
        else:
            parent = self._names.get(event["parent_block_hash"])
            if parent is None:
                self.unnamed_blocks += len(hashes)
                return False
        names = hasher.hashes(event["token_ids"], parent)
        for run_parent, run in self._new_runs(hashes, names, parent):
            self._tell(BlocksStored(run, run_parent))
        return True

    def _can_name(self, event: dict[str, Any]) -> bool:
        """Whether these are plain whole blocks of the device's own memory.

        Others belong to a second group of layers (sliding windows), to a partly filled
        block, or to memory that blocks were moved out to.
        """
        whole = len(event["token_ids"]) == len(event["block_hashes"]) * self._block_size
        return whole and _on_device(event)

    def _new_runs(
        self, hashes: Sequence[EngineHash], names: Sequence[int], parent: int | None
    ) -> list[tuple[int | None, tuple[int, ...]]]:
        """Hold what was not held; it as runs of neighbours, each with its parent.

        From 0.32 on vLLM also announces blocks that it found in its cache.
        """
        runs: list[tuple[int | None, list[int]]] = []
        before, extending = parent, False
        for engine_hash, name in zip(hashes, names, strict=True):
            self._name(engine_hash, name)
            new = engine_hash not in self._held
            if new:
                self._held.add(engine_hash)
                if not extending:
                    runs.append((before, []))
                runs[-1][1].append(name)
            before, extending = name, new
        return [(run_parent, tuple(run)) for run_parent, run in runs]

    def _name(self, engine_hash: EngineHash, name: int) -> None:
        """Remember a name; the oldest that is not held makes room."""
        self._names.pop(engine_hash, None)
        self._names[engine_hash] = name
        while len(self._names) > _NAMES_A_BLOCK * self._max_blocks:
            oldest = next(iter(self._names))
            kept = self._names.pop(oldest)
            if oldest in self._held:  # at most one block in _NAMES_A_BLOCK is
                self._names[oldest] = kept

    def _removed(self, hashes: Sequence[EngineHash]) -> None:
        gone = [each for each in hashes if each in self._held]
        self._held.difference_update(gone)
        if gone:
            self._tell(BlocksRemoved(tuple([self._names[each] for each in gone])))


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
        self._names: BlockNames | None = None
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
            try:
                await self._take(int.from_bytes(number, "big"), payload)
            except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
                logger.error("a KV event could not be read: %s", error)
                await self._start_over()

    async def _take(self, number: int, payload: bytes) -> None:
        if number > self._next:
            await self._replay(self._next)
        if number > self._next:
            logger.warning("KV events %d to %d are lost", self._next, number - 1)
            await self._start_over()
            self._next = number
        if number == self._next:
            await self._apply(payload)

    async def _apply(self, payload: bytes) -> None:
        self._next += 1
        batch = self._decoder.decode(payload)
        assert self._names is not None  # noqa: S101 - connect() comes first
        known = [self._names.apply(event) for event in batch[1]]
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
                    if int.from_bytes(number, "big") == self._next:
                        await self._apply(payload)
        except TimeoutError:
            logger.warning("the engine did not replay its KV events in time")
        finally:
            socket.close(linger=0)

    async def _start_over(self) -> None:
        assert self._names is not None  # noqa: S101 - connect() comes first
        self._names.clear()
        await self._resync()


def _on_device(event: dict[str, Any]) -> bool:
    """Whether it is about the first group of layers, in the memory that is computed with.

    vLLM says GPU there, on a CPU as well.
    """
    elsewhere = event.get("medium") not in {None, "GPU"} or event.get("locality") == "REMOTE"
    return not elsewhere and not event.get("group_idx")


def _adapter_and_salt(event: dict[str, Any]) -> tuple[str, str]:
    """Of a root block: vLLM puts both, in this order, into the first block's extra keys."""
    adapter = event.get("lora_name") or ""
    extra = event.get("extra_keys") or [None]
    texts = [each for each in extra[0] or () if isinstance(each, str)]
    if adapter and texts[:1] == [adapter]:
        texts = texts[1:]
    return adapter, texts[0] if texts else ""
