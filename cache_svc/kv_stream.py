"""One stream of KV events applied to the index: a snapshot, then every change in order.

Whatever does not fit (a gap, another epoch, names of a length that none have) raises
OutOfStep; the follower then starts again from a snapshot. So the index may be late or
empty, but it never keeps what the worker has not said.
"""

import asyncio
from array import array
from collections.abc import Iterator
from enum import Enum

from cache_svc.followed_models import FollowedModel, FollowedModels
from cache_svc.prefix_index import TooManyBlocks
from sidecache.kv_blocks import unpack_hashes
from sidecache.v1 import worker_pb2

# Names applied before the event loop gets its turn: about a millisecond of work.
SLICE_BLOCKS = 4096


class Fault(Enum):
    """Why a worker's blocks had to be asked for again."""

    GAP = "gap"
    EPOCH = "epoch"
    MALFORMED = "malformed"
    TOO_MANY_BLOCKS = "too_many_blocks"


class OutOfStep(Exception):
    """The stream cannot be followed any further."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class KvStream:
    """Applies the events of one worker's epoch.

    Args:
        worker: its name in the index.
        model: what it serves.
        epoch: what every event must carry.
        next_sequence: of the next event, where earlier ones are in the index already;
            0: a snapshot is needed first.

    Attributes:
        applied: blocks stored or removed so far.
        repeated: events that were known already.
    """

    def __init__(
        self,
        worker: str,
        model: FollowedModel,
        models: FollowedModels,
        epoch: str,
        next_sequence: int = 0,
    ) -> None:
        self._worker = worker
        self._index = model.index
        self._models = models
        self._epoch = epoch
        self._in_snapshot = False
        self.next_sequence = next_sequence
        self.applied = 0
        self.repeated = 0

    @property
    def in_step(self) -> bool:
        """Whether the index holds all that the worker had said so far."""
        return self.next_sequence > 0 and not self._in_snapshot

    async def apply(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        """Apply one event.

        Raises:
            OutOfStep: it does not follow what came before, or cannot be true.
        """
        if event.epoch != self._epoch:
            raise OutOfStep(Fault.EPOCH)
        try:
            await self._apply(event)
        except TooManyBlocks:
            raise OutOfStep(Fault.TOO_MANY_BLOCKS) from None
        except ValueError:
            raise OutOfStep(Fault.MALFORMED) from None

    async def _apply(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        kind = event.WhichOneof("event")
        if kind == "snapshot":
            await self._take_snapshot(event)
            return
        if self._in_snapshot or not self.next_sequence or event.sequence > self.next_sequence:
            raise OutOfStep(Fault.GAP)
        if event.sequence < self.next_sequence:
            self.repeated += 1
            return
        if kind == "stored":
            await self._store(unpack_hashes(event.stored.block_hashes))
        elif kind == "removed":
            await self._remove(unpack_hashes(event.removed.block_hashes))
        elif kind == "cleared":
            self._index.cleared(self._worker)
        # An event of a kind that is not known here may have changed anything.
        else:
            raise OutOfStep(Fault.MALFORMED)
        self.next_sequence += 1

    async def _take_snapshot(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        if not self._in_snapshot:
            self._index.cleared(self._worker)
        elif event.sequence + 1 != self.next_sequence:
            raise OutOfStep(Fault.GAP)
        self._in_snapshot = event.snapshot.more
        self.next_sequence = event.sequence + 1
        await self._store(unpack_hashes(event.snapshot.block_hashes))

    async def _store(self, names: "array[int]") -> None:
        for part in _sliced(names):
            self._models.check_room(self._worker, len(part))
            self._index.stored(self._worker, part)
            self.applied += len(part)
            if len(part) == SLICE_BLOCKS:
                await asyncio.sleep(0)

    async def _remove(self, names: "array[int]") -> None:
        for part in _sliced(names):
            self._index.removed(self._worker, part)
            self.applied += len(part)
            if len(part) == SLICE_BLOCKS:
                await asyncio.sleep(0)


def _sliced(names: "array[int]") -> Iterator["array[int]"]:
    for start in range(0, len(names), SLICE_BLOCKS):
        yield names[start : start + SLICE_BLOCKS]
