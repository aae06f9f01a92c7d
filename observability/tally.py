"""Histograms and counters that cost a microsecond, read out by any SDK reader.

The SDK's `record` takes 7 µs warm and more on a request path, where it runs cold:
it validates, copies, sorts and hashes the attributes of every measurement. A
request makes about ten. These instruments implement the same OpenTelemetry API,
keep one cell for each attribute set, and become metric data only when a reader
collects.
"""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite
from time import time_ns
from typing import Any, Final, Generic, TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import (
    Counter,
    Histogram,
    Meter,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.util.types import Attributes

# As in the SDK: beyond it measurements are added up under one attribute set.
MAX_ATTRIBUTE_SETS: Final = 2000
OVERFLOW: Final = {"otel.metric.overflow": True}

CUMULATIVE: Final = sdk.AggregationTemporality.CUMULATIVE

Key = tuple[tuple[str, Any], ...]


class _Sum:
    """A running total."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class _Distribution:
    """Counts by bucket. Bucket i holds values up to and including its bound."""

    __slots__ = ("buckets", "count", "max", "min", "sum")

    def __init__(self, buckets: int) -> None:
        self.buckets = [0] * buckets
        self.count = 0
        self.sum = 0.0
        self.min = inf
        self.max = -inf


C = TypeVar("C", _Sum, _Distribution)


class _Cells(Generic[C]):
    """One cell for each attribute set, found by the order its keys were given in.

    Not thread-safe: its instrument holds the lock.
    """

    def __init__(self) -> None:
        self._by_order: dict[Key, C] = {}
        self._by_set: dict[frozenset[tuple[str, Any]], tuple[dict[str, Any], C]] = {}

    def find(self, attributes: Attributes) -> C | None:
        return self._by_order.get(tuple(attributes.items()) if attributes else ())

    def add(self, attributes: Attributes, fresh: C) -> C:
        """The cell of a set that `find` did not know, which is `fresh` if it is new."""
        order: Key = tuple(attributes.items()) if attributes else ()
        if len(self._by_set) >= MAX_ATTRIBUTE_SETS and frozenset(order) not in self._by_set:
            return self._by_set.setdefault(frozenset(OVERFLOW.items()), (OVERFLOW, fresh))[1]
        _, cell = self._by_set.setdefault(frozenset(order), (dict(order), fresh))
        if len(self._by_order) < 2 * MAX_ATTRIBUTE_SETS:
            self._by_order[order] = cell
        return cell

    def items(self) -> list[tuple[dict[str, Any], C]]:
        return list(self._by_set.values())


class TallyCounter(Counter):
    """A counter that adds up."""

    def __init__(self, name: str, unit: str = "", description: str = "") -> None:
        self._header = (name, description, unit)
        self._lock = threading.Lock()
        self._cells: _Cells[_Sum] = _Cells()
        self._start_ns = time_ns()

    def add(
        self, amount: float, attributes: Attributes = None, context: Context | None = None
    ) -> None:
        if not 0 <= amount < inf:
            return
        with self._lock:
            cell = self._cells.find(attributes) or self._cells.add(attributes, _Sum())
            cell.value += amount

    def collect(self, now_ns: int) -> sdk.Metric | None:
        """The totals so far, or None when nothing was ever added."""
        with self._lock:
            points = [
                sdk.NumberDataPoint(attributes, self._start_ns, now_ns, cell.value)
                for attributes, cell in self._cells.items()
            ]
        return sdk.Metric(*self._header, sdk.Sum(points, CUMULATIVE, True)) if points else None


class TallyHistogram(Histogram):
    """A histogram with fixed bounds."""

    def __init__(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> None:
        self._header = (name, description, unit)
        self._bounds = tuple(explicit_bucket_boundaries_advisory or ())
        self._lock = threading.Lock()
        self._cells: _Cells[_Distribution] = _Cells()
        self._start_ns = time_ns()

    def record(
        self, amount: float, attributes: Attributes = None, context: Context | None = None
    ) -> None:
        if not isfinite(amount) or amount < 0:
            return
        bucket = bisect_left(self._bounds, amount)
        with self._lock:
            cell = self._cells.find(attributes)
            if cell is None:
                cell = self._cells.add(attributes, _Distribution(len(self._bounds) + 1))
            cell.buckets[bucket] += 1
            cell.count += 1
            cell.sum += amount
            cell.min = min(cell.min, amount)
            cell.max = max(cell.max, amount)

    def collect(self, now_ns: int) -> sdk.Metric | None:
        """The distributions so far, or None when nothing was ever recorded."""
        with self._lock:
            points = [
                sdk.HistogramDataPoint(
                    attributes,
                    self._start_ns,
                    now_ns,
                    cell.count,
                    cell.sum,
                    tuple(cell.buckets),
                    self._bounds,
                    cell.min,
                    cell.max,
                )
                for attributes, cell in self._cells.items()
            ]
        return sdk.Metric(*self._header, sdk.Histogram(points, CUMULATIVE)) if points else None


class TallyMeter(Meter):
    """A meter whose counters and histograms tally; every other instrument is the SDK's.

    Asked twice for one name it gives the same instrument, as the SDK does.
    """

    def __init__(self, name: str, inner: Meter) -> None:
        super().__init__(name)
        self._inner = inner
        self._lock = threading.Lock()
        self._counters: dict[str, TallyCounter] = {}
        self._histograms: dict[str, TallyHistogram] = {}

    def create_counter(self, name: str, unit: str = "", description: str = "") -> TallyCounter:
        with self._lock:
            return self._counters.setdefault(name, TallyCounter(name, unit, description))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        with self._lock:
            return self._histograms.setdefault(
                name, TallyHistogram(name, unit, description, explicit_bucket_boundaries_advisory)
            )

    def create_up_down_counter(self, *args: Any, **kwargs: Any) -> UpDownCounter:
        return self._inner.create_up_down_counter(*args, **kwargs)

    def create_observable_counter(self, *args: Any, **kwargs: Any) -> ObservableCounter:
        return self._inner.create_observable_counter(*args, **kwargs)

    def create_observable_gauge(self, *args: Any, **kwargs: Any) -> ObservableGauge:
        return self._inner.create_observable_gauge(*args, **kwargs)

    def create_observable_up_down_counter(
        self, *args: Any, **kwargs: Any
    ) -> ObservableUpDownCounter:
        return self._inner.create_observable_up_down_counter(*args, **kwargs)

    def collect(self) -> list[sdk.Metric]:
        """Everything tallied so far."""
        now_ns = time_ns()
        with self._lock:
            tallies: list[TallyCounter | TallyHistogram] = [
                *self._counters.values(),
                *self._histograms.values(),
            ]
        found = [tally.collect(now_ns) for tally in tallies]
        return [metric for metric in found if metric is not None]


def read_by(reader: sdk.MetricReader, meter: TallyMeter) -> None:
    """Let a reader see a meter's tallies among what it collects from the SDK.

    The specification has MetricProducer for this; the Python SDK does not yet, so
    the reader's own hook for received data is wrapped. The SDK calls it only when
    it has data itself: the meter must have an observable instrument.
    """
    receive = reader._receive_metrics  # noqa: SLF001 - what every reader overrides

    def receive_all(metrics_data: sdk.MetricsData, *args: Any, **kwargs: Any) -> None:
        receive(_with(meter.collect(), metrics_data), *args, **kwargs)

    reader._receive_metrics = receive_all  # type: ignore[method-assign]  # noqa: SLF001


def _with(metrics: Sequence[sdk.Metric], data: sdk.MetricsData) -> sdk.MetricsData:
    """The data with more metrics in its first scope, which is ours."""
    resource, *resources = data.resource_metrics
    scope, *scopes = resource.scope_metrics
    scope = replace(scope, metrics=[*scope.metrics, *metrics])
    resource = replace(resource, scope_metrics=[scope, *scopes])
    return replace(data, resource_metrics=[resource, *resources])
