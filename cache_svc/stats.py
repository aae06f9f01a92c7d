"""What the sidecar has done since it started: in all, and for each tenant."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Events counted, by their names in GetStatsResponse."""

    lookups: int = 0
    exact_hits: int = 0
    semantic_hits: int = 0
    misses: int = 0
    rejected: int = 0
    stored: int = 0
    refused: int = 0
    evicted: int = 0
    expired: int = 0
    degraded: int = 0
    explored: int = 0
    audited: int = 0
    audited_wrong: int = 0
    bound_alarms: int = 0


class Stats:
    """Counters of all tenants together and of each.

    Args:
        max_tenants: the tenant counted longest ago is forgotten beyond this number;
            the total forgets nothing.
    """

    def __init__(self, max_tenants: int = 10_000) -> None:
        self._max_tenants = max_tenants
        self._total = Counters()
        self._tenants: OrderedDict[str, Counters] = OrderedDict()

    def count(self, tenant: str, *names: str, times: int = 1) -> None:
        """Count events of a tenant."""
        own = self._tenants.get(tenant)
        if own is None:
            own = self._tenants[tenant] = Counters()
            if len(self._tenants) > self._max_tenants:
                self._tenants.popitem(last=False)
        for name in names:
            setattr(self._total, name, getattr(self._total, name) + times)
            setattr(own, name, getattr(own, name) + times)

    def of(self, tenant: str = "") -> Counters:
        """The counters of a tenant; with an empty name, of all together."""
        return self._tenants.get(tenant, Counters()) if tenant else self._total
