"""Who generates which answer just now, so that several routers share one generation.

A lease is a hint and never a lock: who holds one may be dead, and who is pointed to it
and finds nothing there generates by itself. So it only has to be bounded in time.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

LEASE_S = 30.0
MAX_LEASES = 65_536


@dataclass(frozen=True, slots=True)
class Lease:
    """A generation under way.

    Attributes:
        router: the address of the router that has it.
        request_id: what it is called there.
        until_s: the clock's time of its end.
    """

    router: str
    request_id: str
    until_s: float


class FlightLeases:
    """The leases of all routers; the oldest goes when there are too many.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By tenant and exact key, oldest first: all are equally long.
        self._leases: OrderedDict[tuple[str, bytes], Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def claim(self, tenant: str, exact: bytes, router: str, request_id: str) -> Lease | None:
        """The lease of another router for this answer; None: it is the caller's now."""
        now = self._clock()
        held = self._leases.get((tenant, exact))
        if held is not None and held.until_s > now and held.router != router:
            return held
        self._leases.pop((tenant, exact), None)
        self._leases[tenant, exact] = Lease(router, request_id, now + LEASE_S)
        while self._leases and self._is_over(now):
            self._leases.popitem(last=False)
        return None

    def release(self, tenant: str, exact: bytes) -> None:
        """The answer is stored: there is nothing to share any more."""
        self._leases.pop((tenant, exact), None)

    def _is_over(self, now: float) -> bool:
        oldest = next(iter(self._leases.values()))
        return oldest.until_s <= now or len(self._leases) > MAX_LEASES
