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

    Where there is no room for one more, the tenant with the most bars gives up its
    oldest: however many one tenant reports, another with fewer loses none.

    Args:
        max_requests: bars of all tenants together.
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
        self._barred: dict[str, OrderedDict[bytes, None]] = {}
        self._count = 0
        for tenant, exact in barred:
            self._add(tenant, exact)
        self._make_room("")

    def __len__(self) -> int:
        """Bars of all tenants together."""
        return self._count

    def bar(self, key: Key) -> None:
        """Keep answers to this request out of the semantic tier."""
        self._add(key.tenant, key.exact)
        self._on_change((key.tenant, key.exact), True)
        self._make_room(key.tenant)

    def holds(self, key: Key) -> bool:
        """Whether answers to this request may not be served to others like it."""
        return key.exact in self._barred.get(key.tenant, ())

    def _add(self, tenant: str, exact: bytes) -> None:
        own = self._barred.setdefault(tenant, OrderedDict())
        self._count += exact not in own
        own[exact] = None
        own.move_to_end(exact)

    def _make_room(self, reporter: str) -> None:
        """Lift the oldest bars of whoever had the most before, of equals the reporter's."""

        def had(tenant: str) -> tuple[int, bool]:
            reports = tenant == reporter
            return len(self._barred[tenant]) - reports, reports

        while self._count > self._max_requests:
            most = max(self._barred, key=had)
            exact, _ = self._barred[most].popitem(last=False)
            if not self._barred[most]:
                del self._barred[most]
            self._count -= 1
            self._on_change((most, exact), False)
