import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from observability import tally
from observability.tally import TallyMeter, read_by
from tests.unit.observability.conftest import End

BOUNDS = (0.1, 1, 10)


def meters() -> tuple[TallyMeter, Any, InMemoryMetricReader]:
    """Our meter and the SDK's own, and the reader of the latter."""
    reader = InMemoryMetricReader()
    inner = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    return TallyMeter("test", inner), inner, reader


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0.05, 0.1, 0.5, 1, 1.0001, 10, 11, 1e9]) | st.floats(0, 1e6),
            st.sampled_from([{}, {"a": "x", "b": "y"}, {"b": "y", "a": "x"}, {"a": "z"}]),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_a_tally_equals_the_sdks_own_numbers(measured: list[tuple[float, dict[str, str]]]) -> None:
    """Counts, sums, bounds, least and greatest are what the SDK's instruments report."""
    ours, sdk_meter, reader = meters()
    instruments = [
        (
            meter.create_histogram("h", explicit_bucket_boundaries_advisory=BOUNDS),
            meter.create_counter("c"),
        )
        for meter in (ours, sdk_meter)
    ]
    for value, attributes in measured:
        for histogram, counter in instruments:
            histogram.record(value, attributes)
            counter.add(value, attributes)
    data = reader.get_metrics_data()
    assert data is not None
    theirs = data.resource_metrics[0].scope_metrics[0].metrics

    def key(metrics: Any) -> Any:
        return {
            (metric.name, tuple(sorted(p.attributes.items()))): (
                (p.count, tuple(p.bucket_counts), tuple(p.explicit_bounds), p.min, p.max)
                if metric.name == "h"
                else ()
            )
            for metric in metrics
            for p in metric.data.data_points
        }

    def totals(metrics: Any) -> Any:
        return {
            (metric.name, tuple(sorted(p.attributes.items()))): (
                p.sum if metric.name == "h" else p.value
            )
            for metric in metrics
            for p in metric.data.data_points
        }

    assert key(ours.collect()) == key(theirs)
    assert totals(ours.collect()) == pytest.approx(totals(theirs))


def test_bad_measurements_are_ignored() -> None:
    """A negative or infinite value would spoil every sum after it."""
    ours, _, _ = meters()
    histogram, counter = ours.create_histogram("h"), ours.create_counter("c")
    for value in (-1, float("inf"), float("nan")):
        histogram.record(value)
        counter.add(value)
    assert ours.collect() == []


def test_attribute_sets_are_bounded() -> None:
    """Beyond the limit measurements are added up under one set; none is lost."""
    ours, _, _ = meters()
    counter = ours.create_counter("c")
    for number in range(tally.MAX_ATTRIBUTE_SETS + 500):
        counter.add(1, {"n": number})
    [metric] = ours.collect()
    points = {tuple(p.attributes.items()): p.value for p in metric.data.data_points}  # type: ignore[union-attr]
    assert len(points) == tally.MAX_ATTRIBUTE_SETS + 1
    assert points[tuple(tally.OVERFLOW.items())] == 500


def test_threads_lose_nothing() -> None:
    """Engines record from threads of their own."""
    ours, _, _ = meters()
    histogram = ours.create_histogram("h", explicit_bucket_boundaries_advisory=BOUNDS)

    def work() -> None:
        for _ in range(2000):
            histogram.record(0.5, {"a": "x"})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [metric] = ours.collect()
    [point] = metric.data.data_points
    assert point.count == 8000  # type: ignore[union-attr]
    assert point.bucket_counts == (0, 8000, 0, 0)  # type: ignore[union-attr]


def test_one_name_is_one_instrument() -> None:
    """Every channel asks for the same histogram; their calls add up in one."""
    ours, _, _ = meters()
    assert ours.create_histogram("h") is ours.create_histogram("h")
    assert ours.create_counter("c") is ours.create_counter("c")


def test_a_reader_sees_tallies_beside_the_sdks_metrics() -> None:
    """One collection holds both kinds, under one scope and resource."""
    end = End.start("sidecache-test")
    end.telemetry.meter.create_counter("tallied").add(2)
    end.telemetry.meter.create_up_down_counter("direct").add(3)
    assert [p.value for p in end.points("tallied")] == [2]
    assert [p.value for p in end.points("direct")] == [3]


def test_a_reader_is_read_through_more_than_once() -> None:
    """Totals are cumulative: reading does not reset them."""
    ours, inner, reader = meters()
    inner.create_up_down_counter("data").add(1)
    read_by(reader, ours)
    counter = ours.create_counter("c")
    for expected in (1, 2):
        counter.add(1)
        data = reader.get_metrics_data()
        assert data is not None
        [metric] = [m for m in data.resource_metrics[0].scope_metrics[0].metrics if m.name == "c"]
        assert [p.value for p in metric.data.data_points] == [expected]  # type: ignore[union-attr]
