"""What follows when entries leave the store: their vectors go too, and it is counted."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from cache_svc.entry import Entry, Place
from cache_svc.scoped_index import ScopedIndex
from cache_svc.stats import Stats
from cache_svc.store import Removal
from observability.metrics.cache import StoreMetrics

_METRIC_REASONS: dict[Removal, Literal["bytes", "ttl", "invalidated"]] = {
    Removal.EVICTED: "bytes",
    Removal.EXPIRED: "ttl",
    Removal.INVALIDATED: "invalidated",
}
_COUNTERS = {Removal.EVICTED: "evicted", Removal.EXPIRED: "expired"}


class Departures:
    """The store's removal listener: keeps the index in step with the store."""

    def __init__(self, index: ScopedIndex, stats: Stats) -> None:
        self._index = index
        self._stats = stats
        self.metrics: StoreMetrics | None = None  # they read the store, so it comes first

    def __call__(self, entries: Sequence[Entry], why: Removal) -> None:
        by_place: dict[Place, list[int]] = defaultdict(list)
        by_tenant: dict[str, int] = defaultdict(int)
        for entry in entries:
            by_tenant[entry.key.tenant] += 1
            if entry.vector_dimension:
                by_place[entry.key.place].append(entry.id)
        for place, ids in by_place.items():
            self._index.remove(place, ids)
        if why in _COUNTERS:
            for tenant, times in by_tenant.items():
                self._stats.count(tenant, _COUNTERS[why], times=times)
        if why in _METRIC_REASONS and self.metrics is not None:
            self.metrics.evicted(_METRIC_REASONS[why], len(entries))
