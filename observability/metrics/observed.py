"""Instruments that are read when the metrics are, not written to."""

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Meter, Observation


def gauge(
    meter: Meter,
    name: str,
    unit: str,
    description: str,
    read: Callable[[], int],
    attributes: dict[str, str],
) -> None:
    """What ``read`` returns goes up and down."""

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read(), attributes)]

    meter.create_observable_gauge(name, [observe], unit=unit, description=description)


def total(meter: Meter, name: str, unit: str, description: str, read: Callable[[], int]) -> None:
    """What ``read`` returns only grows."""

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read())]

    meter.create_observable_counter(name, [observe], unit=unit, description=description)


def observe_each(
    read: Callable[[], Mapping[str, int]], attribute: str
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """An observation for each kind; there are few, and all of them are named in code."""

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {attribute: kind}) for kind, count in read().items()]

    return observe
