"""Follows the lanes' demand and keeps a scale signal for each model."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from router.admission.lane import Lane
from router.admission.scale import ArrivalRate, Demand, ScaleSignal
from router.admission.settings import ScaleSettings
from router.model import ServedModel
from router.worker import Worker


class Scaler:
    """The signals of every model that is served or asked for.

    Args:
        lanes: of the models that were asked for.
        workers: all that the pool knows.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        lanes: Mapping[ServedModel, Lane],
        workers: Callable[[], Iterable[Worker]],
        settings: ScaleSettings,
        clock: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._workers = workers
        self._settings = settings
        self._clock = clock
        self._signals: dict[str, ScaleSignal] = {}
        self._demands: dict[str, Demand] = {}
        self._asked: dict[str, int] = {}
        self._rates: dict[str, ArrivalRate] = {}
        self._sampled_at = clock()

    async def run(self) -> None:
        """Sample on the interval, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.interval_s)
            self.sample()

    def sample(self) -> None:
        """Take in the demand of this moment."""
        now = self._clock()
        elapsed_s, self._sampled_at = max(now - self._sampled_at, 1e-3), now
        by_model: dict[str, list[Worker]] = {}
        for worker in self._workers():
            if worker.model is not None:
                by_model.setdefault(worker.model.name, []).append(worker)
        for name, workers in by_model.items():
            demand = self._demand(name, [w for w in workers if w.is_ready], elapsed_s)
            signal = self._signals.get(name)
            if signal is None:
                signal = self._signals[name] = ScaleSignal(demand.workers, self._settings)
            self._demands[name] = demand
            signal.update(demand, now)
        for name in self._signals.keys() - by_model.keys():
            del self._signals[name], self._demands[name]
            self._asked.pop(name, None)
            self._rates.pop(name, None)

    def desired(self) -> dict[str, int]:
        """Workers desired, by model."""
        return {name: signal.value for name, signal in self._signals.items()}

    def signals(self) -> list[tuple[str, ScaleSignal, Demand]]:
        """Every model's signal, and the demand it last saw."""
        return [(name, signal, self._demands[name]) for name, signal in self._signals.items()]

    def _demand(self, name: str, ready: list[Worker], elapsed_s: float) -> Demand:
        lanes = [lane for model, lane in self._lanes.items() if model.name == name]
        asked = sum(lane.asked_slots for lane in lanes)
        arrived = max(0, asked - self._asked.get(name, 0))
        self._asked[name] = asked
        rate = self._rates.setdefault(name, ArrivalRate(self._settings.rate_tau_s))
        usages = [w.load.kv_cache_usage for w in ready if w.load.kv_cache_usage is not None]
        sizes = [w.load.most_slots for w in ready]
        return Demand(
            workers=len(ready),
            slots=sum(sizes) if all(sizes) else 0,
            # What other routers run there is load as well.
            running=sum(lane.held_slots for lane in lanes)
            + sum(w.load.foreign_sequences for w in ready),
            waiting=sum(lane.waiting_slots for lane in lanes),
            arrivals_per_s=rate.update(arrived, elapsed_s),
            hold_s=max((lane.mean_hold_s for lane in lanes), default=0.0),
            kv_usage=sum(usages) / len(usages) if usages else None,
        )
