"""What this worker's KV cache holds now, and what changed lately, for anyone who follows.

An engine records its events here. A follower reads a snapshot and then every change,
each with the next sequence number, so that it can see a gap. What waits for a slow
follower is the one log that all share, and the log is bounded: who falls behind it is
cut off and begins anew.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from sidecache.errors import Overloaded, StreamInterrupted, Unavailable

# Of one event or snapshot part: 512 KiB on the wire, an eighth of a message's default limit.
MAX_HASHES = 65_536
# Changes handed over at once; between two portions others get their turn.
_PORTION = 256
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """Some of the blocks held after change ``sequence``.

    Attributes:
        more: whether another part of the same snapshot follows.
    """

    sequence: int
    hashes: tuple[int, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One event with its number; the first of a worker's life is 1."""

    sequence: int
    event: KvEvent


class KvLedger:
    """Records an engine's KV events and lets any number of followers read them.

    What happened in one turn of the event loop gets two numbers at most, three where the
    cache was cleared: everything that is gone, then everything that is new. Hundreds of
    sequences end a block in the same engine step, and a message for each would cost a
    worker more than they did. Use it from one event loop.

    Args:
        max_changes: changes kept for followers that lag or come back.
        max_hashes: block names in those changes together.
        max_followers: who may follow at once.
    """

    def __init__(
        self, max_changes: int = 8192, max_hashes: int = 524_288, max_followers: int = 64
    ) -> None:
        self._max_changes = max_changes
        self._max_hashes = max_hashes
        self._max_followers = max_followers
        # In the order of storing, so that in a snapshot a parent comes before its children.
        self._held: dict[int, None] = {}
        # What this turn's events come to.
        self._cleared = False
        self._removed: dict[int, None] = {}
        self._stored: dict[int, None] = {}
        self._parent: int | None = None
        self._is_pending = False
        self._log: deque[Change] = deque()
        self._log_hashes = 0
        self._followers = 0
        self._sequence = 0
        self._closed = False
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Blocks held now."""
        return len(self._held)

    @property
    def sequence(self) -> int:
        """Number of the last change; 0: there was none."""
        return self._sequence

    @property
    def closed(self) -> bool:
        """Whether everything that follows has come to its end."""
        return self._closed

    def held(self) -> frozenset[int]:
        """The blocks held now."""
        self.flush()
        return frozenset(self._held)

    def record(self, event: KvEvent) -> None:
        """Take an engine's event: a :data:`~inference_svc.kv_events.KvListener`."""
        if isinstance(event, CacheCleared):
            # What came before it in this turn is gone as well.
            self._cleared = True
            self._removed.clear()
            self._stored.clear()
        elif isinstance(event, BlocksRemoved):
            for name in event.hashes:
                self._stored.pop(name, None)
                self._removed[name] = None
        else:
            if not self._stored:
                self._parent = event.parent
            for name in event.hashes:
                self._removed.pop(name, None)
                self._stored[name] = None
        if not self._is_pending:
            self._is_pending = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Number what was recorded in this turn, and wake the followers."""
        if not self._is_pending:
            return
        for event in self._turn():
            for piece in _pieces(event):
                self._apply(piece)
        self._news.set()
        self._news = asyncio.Event()

    def follow(self, start_sequence: int) -> "KvCursor":
        """Begin to read; close the cursor when done.

        Args:
            start_sequence: the first change wanted. 0, or one that the log no longer
                (or not yet) has: a snapshot, then every change after it.

        Raises:
            Overloaded: too many follow already.
            Unavailable: the ledger is closed.
        """
        if self._closed:
            raise Unavailable("this worker drains, or its engine is dead; nothing more will change")
        if self._followers >= self._max_followers:
            raise Overloaded(
                f"{self._followers} follow this worker's KV events, at most "
                f"{self._max_followers} may",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._followers += 1
        self.flush()
        return KvCursor(self, start_sequence)

    def close(self) -> None:
        """End every follower's stream after what it can still read at once."""
        self.flush()
        self._closed = True
        self._news.set()

    def left(self) -> None:
        """One follower less."""
        self._followers -= 1

    def snapshot(self) -> list[SnapshotPart]:
        """Everything held, in parts; an empty cache is one empty part."""
        names = iter(self._held)
        parts = []
        left = len(self._held)
        while True:
            hashes = tuple(islice(names, MAX_HASHES))
            left -= len(hashes)
            parts.append(SnapshotPart(self._sequence, hashes, more=left > 0))
            if not left:
                return parts

    def has(self, sequence: int) -> bool:
        """Whether a follower can go on with this change, or will when it happens."""
        oldest = self._log[0].sequence if self._log else self._sequence + 1
        return oldest <= sequence <= self._sequence + 1

    def changes(self, start_sequence: int) -> list[Change]:
        """Some of the changes from this one on, which the log :meth:`has`."""
        begin = start_sequence - (self._sequence + 1 - len(self._log))
        # By index: a deque counts from its nearer end, and most followers are near the last.
        end = min(begin + _PORTION, len(self._log))
        return [self._log[index] for index in range(begin, end)]

    async def wait_beyond(self, sequence: int) -> None:
        """Return once there is a change after this one, or the ledger is closed."""
        while self._sequence <= sequence and not self._closed:
            await self._news.wait()

    def _turn(self) -> Iterator[KvEvent]:
        """What the turn comes to, which is then over. Who follows never holds too much."""
        gone = tuple([name for name in self._removed if name in self._held])
        if self._cleared:
            yield CacheCleared()
        elif gone:
            yield BlocksRemoved(gone)
        if self._stored:
            yield BlocksStored(tuple(self._stored), self._parent)
        self._cleared = self._is_pending = False
        self._removed = {}
        self._stored = {}

    def _apply(self, event: KvEvent) -> None:
        if isinstance(event, BlocksStored):
            self._held.update(dict.fromkeys(event.hashes))
        elif isinstance(event, BlocksRemoved):
            for name in event.hashes:
                self._held.pop(name, None)
        else:
            self._held.clear()
        self._sequence += 1
        self._log.append(Change(self._sequence, event))
        self._log_hashes += _size(event)
        while len(self._log) > self._max_changes or self._log_hashes > self._max_hashes:
            self._log_hashes -= _size(self._log.popleft().event)


class KvCursor:
    """Where one follower stands; holds nothing of its own but an unread snapshot."""

    def __init__(self, ledger: KvLedger, start_sequence: int) -> None:
        self._ledger = ledger
        self._snapshot: deque[SnapshotPart] = deque()
        self._next = start_sequence
        self._open = True
        if start_sequence < 1 or not ledger.has(start_sequence):
            self._snapshot.extend(ledger.snapshot())
            self._next = ledger.sequence + 1

    def take(self) -> list[SnapshotPart] | list[Change]:
        """What can be read now: the next snapshot part or some changes; empty: wait.

        Raises:
            StreamInterrupted: the log has forgotten what comes next; follow anew.
        """
        if self._snapshot:
            return [self._snapshot.popleft()]
        if not self._ledger.has(self._next):
            raise StreamInterrupted(
                f"change {self._next} is no longer kept, the last is {self._ledger.sequence}: "
                "read faster, or begin with a snapshot"
            )
        changes = self._ledger.changes(self._next)
        self._next += len(changes)
        return changes

    async def wait(self) -> bool:
        """Return when there is something to take; False: there will be nothing more."""
        if self._snapshot:
            return True
        await self._ledger.wait_beyond(self._next - 1)
        return self._ledger.sequence >= self._next

    def close(self) -> None:
        """Make room for another follower. Safe to call twice."""
        if self._open:
            self._open = False
            self._ledger.left()


def _pieces(event: KvEvent) -> Iterator[KvEvent]:
    """The event, in pieces that fit a message."""
    if isinstance(event, CacheCleared) or len(event.hashes) <= MAX_HASHES:
        yield event
        return
    for begin in range(0, len(event.hashes), MAX_HASHES):
        piece = event.hashes[begin : begin + MAX_HASHES]
        if isinstance(event, BlocksRemoved):
            yield BlocksRemoved(piece)
        else:
            yield BlocksStored(piece, event.hashes[begin - 1] if begin else event.parent)


def _size(event: KvEvent) -> int:
    return 1 if isinstance(event, CacheCleared) else len(event.hashes)
