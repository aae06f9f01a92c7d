"""How fast a tenant may bring new entries: a token bucket each.

A poisoned or broken client that stores as fast as it can would otherwise turn its
tenant's whole share of the store over, and keep the embedder and the disk busy.
"""

from collections import OrderedDict
from dataclasses import dataclass

from cache_svc.store import Clock


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


class NewEntryRate:
    """Token buckets of all tenants.

    Args:
        per_s: new entries a second that a tenant may store in the long run.
        burst: new entries that it may store at once after a rest.
        clock: monotonic seconds.
        max_tenants: the tenant that stored longest ago starts afresh beyond this number.
    """

    def __init__(self, per_s: float, burst: int, clock: Clock, max_tenants: int = 10_000) -> None:
        self.per_s = per_s
        self._burst = burst
        self._clock = clock
        self._max_tenants = max_tenants
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admits(self, tenant: str) -> bool:
        """Whether the tenant may store one entry now; it is counted if so."""
        bucket = self._filled(tenant)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _filled(self, tenant: str) -> _Bucket:
        now_s = self._clock()
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(self._burst, now_s)
            if len(self._buckets) > self._max_tenants:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(tenant)
        gained = (now_s - bucket.filled_s) * self.per_s
        bucket.tokens = min(self._burst, bucket.tokens + gained)
        bucket.filled_s = now_s
        return bucket
