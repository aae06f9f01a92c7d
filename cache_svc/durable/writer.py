"""Writing behind: one thread commits whatever came together while it was busy.

The event loop only adds to the next change, in memory. While one commit runs,
the next change grows, so a slow disk makes larger groups instead of a longer
queue; how much may wait is bounded, and beyond it new answers are refused.

A commit that fails (a full disk, a sick one) loses the answers in it, and says
so. Removals and bars are owed and tried again until they are on disk: what was
invalidated must not come back. Until a commit succeeds, new answers are refused.
"""

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cache_svc.durable.database import AnswerDatabase, Change
from cache_svc.durable.learnt_row import Bar, Bounded, BoundRow, JudgementRow
from cache_svc.durable.row import EntryRow, VectorRow
from cache_svc.store import NotWritable

_log = logging.getLogger(__name__)

RETRY_S = 0.5
CLOSE_TIMEOUT_S = 10.0
# Answers lost to failed commits whose callers may still ask; far more than are under way.
_KNOWN_LOST = 65_536
NOTHING: Mapping[Any, Any] = MappingProxyType({})


# Called when a commit ended, with whether it succeeded.
_Waiter = Callable[[bool], None]


class WriteBehind:
    """The thread that writes, and the change it will commit next.

    Attributes:
        lost_answers: how many were in commits that failed, since the start.

    Args:
        database: used by this thread only, until :meth:`close`.
        now: Unix seconds, for the database's own account of time.
        sync: force every commit to the disk.
        max_waiting_bytes: beyond it new answers are refused.
        retry_s: how long a failed commit waits for the next try.
    """

    def __init__(
        self,
        database: AnswerDatabase,
        now: Callable[[], float],
        *,
        sync: bool,
        max_waiting_bytes: int,
        retry_s: float = RETRY_S,
    ) -> None:
        self._database = database
        self._now = now
        self._sync = sync
        self._max_waiting_bytes = max_waiting_bytes
        self._retry_s = retry_s
        self._changed = threading.Condition(threading.RLock())
        self._next = Change()
        self._waiters: list[_Waiter] = []
        # Who waits for the commit that runs now; None: none runs.
        self._running: list[_Waiter] | None = None
        self._waiting_bytes = 0
        self._failure = ""
        self._lost: OrderedDict[int, None] = OrderedDict()
        self.lost_answers = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def check_writable(self) -> None:
        """Refuse a new answer that could not be written.

        Raises:
            NotWritable: the last commit failed, or too much waits for the disk.
        """
        if self._failure:
            raise NotWritable(f"the store's disk takes no writes: {self._failure}")
        if self._waiting_bytes > self._max_waiting_bytes:
            raise NotWritable(
                f"{self._waiting_bytes} bytes wait to be written, may be {self._max_waiting_bytes}"
            )

    @contextlib.contextmanager
    def one_change(self) -> Iterator[None]:
        """What is added inside the block is committed together."""
        with self._changed:
            yield

    def add(self, entry: EntryRow, vector: VectorRow | None, size: int) -> None:
        """Write an entry, of about ``size`` bytes."""
        with self._changed:
            number = entry[0]
            self._next.entries[number] = entry
            if vector is not None:
                self._next.vectors[number] = vector
            self._next.bytes += size
            self._waiting_bytes += size
            self._changed.notify()

    def remove(self, numbers: Sequence[int]) -> None:
        """Delete rows; those not written yet never are."""
        with self._changed:
            for number in numbers:
                self._next.forget(number)
            self._changed.notify()

    def set_bar(self, bar: Bar, *, barred: bool) -> None:
        """Bar a request from the semantic tier, or free it."""
        with self._changed:
            self._next.bars.pop(bar, None)  # the newest goes to the end
            self._next.bars[bar] = barred
            self._changed.notify()

    def note(
        self,
        *,
        uses: Mapping[int, tuple[int, float]] = NOTHING,
        judgements: Mapping[int, JudgementRow] = NOTHING,
        bounds: Mapping[Bounded, BoundRow] = NOTHING,
    ) -> None:
        """Write what was learnt meanwhile, of entries that are there; new rows replace old ones."""
        if not (uses or judgements or bounds):
            return
        with self._changed:
            self._next.uses.update(uses)
            self._next.judgements.update(judgements)
            self._next.bounds.update(bounds)
            self._changed.notify()

    def is_lost(self, number: int) -> bool:
        """Whether the row was in a commit that failed."""
        with self._changed:
            return number in self._lost

    async def settled(self, *, sync: bool = False) -> bool:
        """Wait for all that was added so far; returns whether it is on disk.

        Args:
            sync: not only given to the system, but forced to the disk.
        """
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[bool] = loop.create_future()

        def tell(committed: bool) -> None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(_settle, settled, committed)

        with self._changed:
            self._next.sync |= sync
            if self._next:
                self._waiters.append(tell)
            elif self._running is not None:
                self._running.append(tell)
            else:
                return True
            self._changed.notify()
        return await settled

    def close(self) -> None:
        """Commit what waits, and end the thread; bounded, should the disk hang."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _log.error("the store's disk hangs; what was not written is lost")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._next or self._closing):
                    self._changed.wait()
                if not self._next:
                    return
                change, self._next = self._next, Change()
                self._running, self._waiters = self._waiters, []
            error = self._commit(change)
            with self._changed:
                waiters, self._running = self._running, None
                self._waiting_bytes -= change.bytes
                if error is None:
                    self._recovered()
                else:
                    self._failed(change, error)
            # Its rows are not to stay in memory until the next change comes.
            del change
            for tell in waiters:
                tell(error is None)
            if error is not None and not self._pause():
                return

    def _commit(self, change: Change) -> Exception | None:
        try:
            self._database.commit(change, self._now(), sync=self._sync)
        except Exception as error:  # noqa: BLE001  # whatever broke, the waiters must hear of it
            return error
        return None

    def _recovered(self) -> None:
        if self._failure:
            _log.warning("the store writes again; %d answers were lost so far", self.lost_answers)
        self._failure = ""

    def _failed(self, change: Change, error: Exception) -> None:
        """Count what is lost, and put what is owed before whatever came since."""
        if not self._failure:
            _log.error("the store cannot write: %s; new answers are refused", error)
        self._failure = str(error)
        for number in change.entries:
            self._lost[number] = None
            if len(self._lost) > _KNOWN_LOST:
                self._lost.popitem(last=False)
        self.lost_answers += len(change.entries)
        later = self._next
        later.removed[:0] = change.removed
        # An alarm is owed too; what is known of single entries is learnt again.
        later.bounds = {**change.bounds, **later.bounds}
        later.bars = {
            **{b: on for b, on in change.bars.items() if b not in later.bars},
            **later.bars,
        }
        later.sync = True  # tries again even where nothing is owed, to notice the recovery

    def _pause(self) -> bool:
        """Wait for the next try; False when there is none, since the store closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._retry_s)
            return not self._closing


def _settle(settled: asyncio.Future[bool], committed: bool) -> None:
    if not settled.done():
        settled.set_result(committed)
