"""What the router learns from lost streams, and what it allows for them."""

from collections.abc import Callable

from opentelemetry.metrics import Meter

from observability.metrics.router import RecoveryMetrics
from router.crowd import Crowd
from router.outliers import Outliers
from router.passage import Passage
from router.quarantine import Quarantine
from router.retry_budget import RetryBudget
from router.settings import QuarantineSettings, RetrySettings
from sidecache.errors import EngineFailed, SidecacheError


class Recovery:
    """One place for each stream to report to; what it costs where all is well is little.

    Args:
        retries: how many requests may begin again.
        quarantine: when a prompt is refused.
        outliers: the workers' records, which the pool goes by.
        meter: of the router's telemetry.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        retries: RetrySettings,
        quarantine: QuarantineSettings,
        outliers: Outliers,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self.budget = RetryBudget(retries, clock)
        self.quarantine = Quarantine(quarantine, clock)
        self.clock = clock
        self._outliers = outliers
        self.metrics = RecoveryMetrics(
            meter,
            quarantined=lambda: self.quarantine.confirmed,
            ejections=lambda: outliers.ejections,
        )

    def heard(self, passage: Passage) -> None:
        """The worker sent something of this stream."""
        passage.worker.heard()
        if not passage.is_answered and passage.first_token_s is not None:
            passage.is_answered = True
            self._outliers.answered(passage.worker, passage.first_token_s)
        if not self.quarantine.is_empty:
            self.quarantine.got_on(passage, passage.crowd)

    def completed(self, passage: Passage) -> None:
        """The stream ended well there."""
        self._outliers.completed(passage.worker)
        if not self.quarantine.is_empty:
            self.quarantine.completed(passage)

    def lost(self, passage: Passage, error: SidecacheError) -> None:
        """The stream did not end well there; a refusal is nobody's failure."""
        if not isinstance(error, EngineFailed):
            return
        worker = passage.worker
        if not passage.crowd.is_lost:
            # A worker that goes with all its streams has failed once, not so many times.
            self._outliers.failed(worker)
        if passage.worker_is_lost:
            self.quarantine.worker_lost(passage.crowd)
        if passage.worker_hangs:
            # Nobody is blamed: a machine that stands still is far likelier than a prompt.
            passage.crowd.is_lost = True
        if passage.crowd.is_lost and worker.crowd is passage.crowd:
            worker.crowd = Crowd()
