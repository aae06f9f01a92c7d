"""Workers that are healthy by their own word, and do worse than their peers.

Two rules, for two ways to be bad. A breaker for each worker: streams lost in a row keep
everybody away, then one stream at a time finds out. And outlier ejection (as Envoy's): who
loses a larger share of its streams than its peers, or takes far longer to a first token,
is left out for a time that grows. A fault that all share is nobody's own, so at most half
of a model's workers are ever out; a full queue is no failure.
"""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, WeakSet

from router.breaker import Breaker
from router.settings import OutlierSettings
from router.worker import Worker

log = logging.getLogger(__name__)

# Between two comparisons of all workers, as a share of the window.
_JUDGE_EVERY = 0.025


class Record:
    """What one worker has done of late: counts that fade away over the window."""

    __slots__ = ("breaker", "completed", "ejected_s", "epoch", "first_tokens", "lost", "out_until")

    def __init__(self, epoch: str, breaker: Breaker) -> None:
        self.epoch = epoch
        self.breaker = breaker
        self.ejected_s = 0.0
        self.out_until = -math.inf
        self.forget()

    def forget(self) -> None:
        """Start the counts anew."""
        self.completed = 0.0
        self.lost = 0.0
        # Their number, and the sum of their times.
        self.first_tokens = (0.0, 0.0)

    def fade(self, factor: float) -> None:
        """Make everything count less."""
        self.completed *= factor
        self.lost *= factor
        self.first_tokens = (self.first_tokens[0] * factor, self.first_tokens[1] * factor)

    @property
    def streams(self) -> float:
        """Streams that ended."""
        return self.completed + self.lost


class Outliers:
    """The records of all workers, and who is to be left alone.

    Args:
        settings: what is bad, and for how long.
        clock: monotonic seconds.

    Attributes:
        ejections: so far.
    """

    def __init__(self, settings: OutlierSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        # A stream of a worker that was forgotten may still end: what it says goes with the worker.
        self._records: WeakKeyDictionary[Worker, Record] = WeakKeyDictionary()
        # Those with an open breaker or out for a time; empty nearly always.
        self._troubled: WeakSet[Worker] = WeakSet()
        self._faded_at = clock()
        self.ejections = 0

    def answered(self, worker: Worker, ttft_s: float) -> None:
        """A first token came, so long after it was asked for."""
        record = self._record(worker)
        record.breaker.succeeded()
        count, total_s = record.first_tokens
        record.first_tokens = (count + 1, total_s + ttft_s)

    def completed(self, worker: Worker) -> None:
        """A stream ended well."""
        self._record(worker).completed += 1
        self._judge()

    def failed(self, worker: Worker) -> None:
        """A stream was lost by the worker's fault."""
        record = self._record(worker)
        record.lost += 1
        record.breaker.failed()
        if record.breaker.is_open:
            self._troubled.add(worker)
        self._judge()

    def forget(self, worker: Worker) -> None:
        """The worker is gone for good."""
        self._records.pop(worker, None)
        self._troubled.discard(worker)

    def usable(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Those that may get a stream now; maybe none.

        Who only does worse than its peers is used where no peer is left (Envoy's panic
        threshold, at its lowest); who loses every stream is not.
        """
        if not self._troubled:
            return workers
        well = [worker for worker in workers if self._may_serve(worker)]
        return well or [one for one in workers if self._record(one).breaker.may_admit]

    def chosen(self, worker: Worker) -> None:
        """A stream goes there: if it is to find out, it is the one."""
        if worker in self._troubled:
            self._records[worker].breaker.admit()

    def _may_serve(self, worker: Worker) -> bool:
        if worker not in self._troubled:
            return True
        record = self._record(worker)
        is_out = record.out_until > self._clock()
        if not is_out and not record.breaker.is_open:
            self._troubled.discard(worker)
        return not is_out and record.breaker.may_admit

    def _record(self, worker: Worker) -> Record:
        record = self._records.get(worker)
        if record is None or record.epoch != worker.epoch:
            # A restarted worker is a new one.
            breaker = Breaker(self._settings.failures_to_open, self._settings.open_s, self._clock)
            record = self._records[worker] = Record(worker.epoch, breaker)
            self._troubled.discard(worker)
        return record

    def _judge(self) -> None:
        """Compare all workers with their peers, not more often than it is worth."""
        now, window_s = self._clock(), self._settings.window_s
        since_s = now - self._faded_at
        if since_s < _JUDGE_EVERY * window_s:
            return
        self._faded_at = now
        for worker, record in self._records.items():
            if self._is_worse(worker, record):
                self._eject(worker, record, now)
        for record in self._records.values():
            record.fade(math.exp(-since_s / window_s))

    def _is_worse(self, worker: Worker, record: Record) -> bool:
        settings = self._settings
        peers = [
            other
            for one, other in self._records.items()
            if one is not worker and one.model == worker.model
        ]
        if record.streams >= settings.min_streams:
            theirs = [p.lost / p.streams for p in peers if p.streams >= settings.min_streams]
            usual = statistics.median(theirs) if theirs else 1.0
            if record.lost / record.streams > usual + settings.error_share:
                return True
        count, total_s = record.first_tokens
        if count < settings.min_streams or total_s / count < settings.ttft_min_s:
            return False
        means = [total / n for n, total in (p.first_tokens for p in peers) if n >= 1]
        return bool(means) and total_s / count > settings.ttft_factor * statistics.median(means)

    def _eject(self, worker: Worker, record: Record, now: float) -> None:
        peers = [one for one in self._records if one.model == worker.model]
        out = sum(self._records[one].out_until > now for one in peers)
        if record.out_until > now or 2 * (out + 1) > len(peers):
            return
        settings = self._settings
        came_back_s = now - record.out_until
        no_better = came_back_s < record.ejected_s + settings.window_s
        record.ejected_s = (
            min(2 * record.ejected_s, settings.max_eject_s)
            if no_better and record.ejected_s
            else settings.eject_s
        )
        record.out_until = now + record.ejected_s
        record.forget()
        self._troubled.add(worker)
        self.ejections += 1
        log.warning(
            "worker does worse than its peers: out for %g s",
            record.ejected_s,
            extra={"worker": worker.name},
        )
