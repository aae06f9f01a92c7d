"""Requests whose answers were served wrongly once and are kept from it since."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from cache_svc.entry import Key

# Told of a tenant's exact key, and whether it is barred from now on.
BarListener = Callable[[tuple[str, bytes], bool], None]


class Quarantine:
    """Bars requests from the semantic tier after a wrong hit was reported.

    Removing the wrong entry is not enough: the next time its own request is asked,
    the same answer is stored again and serves the same look-alikes. A barred
    request keeps its exact hits only.

    Args:
        max_requests: the oldest bar is lifted for a newer one beyond this number.
        barred: from before a restart, oldest first.
        on_change: remembers every change for the next restart.
    """

    def __init__(
        self,
        max_requests: int,
        *,
        barred: Iterable[tuple[str, bytes]] = (),
        on_change: BarListener = lambda _bar, _barred: None,
    ) -> None:
        self._max_requests = max_requests
        self._on_change = on_change
        self._barred: OrderedDict[tuple[str, bytes], None] = OrderedDict.fromkeys(barred)
        self._lift_oldest()

    def bar(self, key: Key) -> None:
        """Keep answers to this request out of the semantic tier."""
        bar = key.tenant, key.exact
        self._barred[bar] = None
        self._barred.move_to_end(bar)
        self._on_change(bar, True)
        self._lift_oldest()

    def holds(self, key: Key) -> bool:
        """Whether answers to this request may not be served to others like it."""
        return (key.tenant, key.exact) in self._barred

    def _lift_oldest(self) -> None:
        while len(self._barred) > self._max_requests:
            oldest, _ = self._barred.popitem(last=False)
            self._on_change(oldest, False)
