"""When a second worker may begin because the first is late with its first token.

Hedged requests (Dean and Barroso, "The Tail at Scale"): it pays where a worker is slow now and
then, and its price is a prefill for nothing. So it is off unless set, begins only where nobody
waits for the place it takes, and draws on a budget as retries do.
"""

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from opentelemetry import trace

from observability import names
from observability.metrics.router import HedgeMetrics, HedgeOutcome
from router.model import ServedModel
from router.retry_budget import RetryBudget
from router.settings import HedgeSettings, RetrySettings
from router.worker import Worker

# First tokens of each worker that the usual delay is learned from; fewer say nothing yet.
_MOST, _LEAST = 64, 16
# How long what was learned is used before it is worked out again.
_FRESH_S = 0.5


class Hedging:
    """What all requests' hedges share: the delay, the budget, and the count.

    Args:
        settings: after how long, and how many.
        has_room: whether admission would let one more sequence of the model in at once.
        metrics: count how they end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: HedgeSettings,
        has_room: Callable[[ServedModel], bool],
        metrics: HedgeMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._has_room = has_room
        self._metrics = metrics
        self._clock = clock
        budget = RetrySettings(share=settings.share, floor_per_s=0.0, reserve=settings.reserve)
        self._budget = RetryBudget(budget, clock)
        self._times: WeakKeyDictionary[Worker, deque[float]] = WeakKeyDictionary()
        # By model: until when it holds, and the delay.
        self._delays: dict[str, tuple[float, float | None]] = {}

    def asked(self) -> None:
        """A request came: so much more may be hedged."""
        self._budget.asked()

    def took(self, worker: Worker, first_token_s: float) -> None:
        """Take in how long a worker needed, or had needed when it was overtaken."""
        self._times.setdefault(worker, deque(maxlen=_MOST)).append(first_token_s)

    def delay_s(self, model: ServedModel, workers: Sequence[Worker]) -> float | None:
        """How long the first worker is alone; None: nothing is learned yet.

        Unless it is set: what 95 of 100 requests take at a usual worker, that is the median
        over the workers. Over all requests together one slow worker of six would set it.
        """
        settings = self._settings
        if settings.after_s is not None:
            return settings.after_s
        fresh_until, learned_s = self._delays.get(model.name, (0.0, None))
        if self._clock() >= fresh_until:
            learned = [_p95(times) for w in workers if len(times := self._of(w)) >= _LEAST]
            learned_s = statistics.median(learned) if learned else None
            self._delays[model.name] = (self._clock() + _FRESH_S, learned_s)
        return None if learned_s is None else max(settings.least_s, learned_s)

    def may_begin(self, model: ServedModel) -> bool:
        """Whether a second worker may begin now; it is paid for then."""
        if not self._has_room(model):
            self._metrics.hedged("no_room")
        elif not self._budget.take():
            self._metrics.hedged("no_budget")
        else:
            return True
        return False

    def ended(self, outcome: HedgeOutcome) -> None:
        """Tell how one that began has ended."""
        self._metrics.hedged(outcome)
        trace.get_current_span().set_attribute(names.HEDGE_OUTCOME, outcome)

    def wasted(self, prompt_tokens: int) -> None:
        """Tell what was given to two workers: the prompt of a request that was hedged."""
        self._metrics.wasted(prompt_tokens)

    def _of(self, worker: Worker) -> Sequence[float]:
        return self._times.get(worker, ())


def _p95(times: Sequence[float]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))]
