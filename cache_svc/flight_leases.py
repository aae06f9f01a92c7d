"""Who generates which answer just now, so that several routers share one generation.

A lease is a hint and never a lock: who holds one may be dead, and who is pointed to it
and finds nothing there takes it over and generates by itself. What it promises is only
that one router at a time is named. It lasts for as long as its holder says so again
(leases: Gray and Cheriton, SOSP 1989).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

MAX_LEASES = 65_536


class Ending(Enum):
    """What became of a generation whose lease is over."""

    ANSWERED = "answered"
    GIVEN_BACK = "given_back"
    EXPIRED = "expired"


@dataclass(slots=True)
class Lease:
    """A generation under way.

    Attributes:
        router: the address of the router that has it.
        request_id: what it is called there.
        is_private: nobody can read along there.
        until_s: the clock's time of its end.
    """

    router: str
    request_id: str
    is_private: bool
    until_s: float


class Claim(NamedTuple):
    """Who wants a lease.

    Attributes:
        instead_of: a router that was found lost; what it holds is the caller's.
    """

    router: str
    request_id: str
    is_private: bool = False
    instead_of: str = ""


def _nobody_asks(_tenant: str, _exact: bytes, _ending: Ending) -> None:
    pass


class FlightLeases:
    """The leases of all routers; the oldest goes when there are too many.

    Args:
        clock: monotonic seconds.
        lease_s: how long one lasts that is not kept.
        on_end: told of every lease that is over; not of one that changes hands.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        lease_s: float,
        on_end: Callable[[str, bytes, Ending], None] = _nobody_asks,
    ) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._on_end = on_end
        # By tenant and exact key, the first to end first: all are equally long.
        self._leases: OrderedDict[tuple[str, bytes], Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def claim(self, tenant: str, exact: bytes, claim: Claim) -> Lease | None:
        """Take or keep the lease of an answer.

        Returns:
            Who else has it; None: it is the caller's now.
        """
        self.expire()
        lease = self._leases.get((tenant, exact))
        if lease is None or (lease.router != claim.router and _gives_way(lease, claim)):
            lease = Lease(claim.router, claim.request_id, claim.is_private, 0.0)
        elif lease.router != claim.router:
            return lease
        lease.until_s = self._clock() + self._lease_s
        self._leases[tenant, exact] = lease
        self._leases.move_to_end((tenant, exact))
        if len(self._leases) > MAX_LEASES:
            self._end(next(iter(self._leases)), Ending.EXPIRED)
        return None

    def holder(self, tenant: str, exact: bytes) -> Lease | None:
        """Who has the lease of an answer now."""
        self.expire()
        return self._leases.get((tenant, exact))

    def give_back(self, tenant: str, exact: bytes, router: str) -> None:
        """The generation has ended without an answer; of use only to the lease's holder."""
        lease = self._leases.get((tenant, exact))
        if lease is not None and lease.router == router:
            self._end((tenant, exact), Ending.GIVEN_BACK)

    def answered(self, tenant: str, exact: bytes) -> None:
        """The answer is stored: there is nothing to share any more."""
        if (tenant, exact) in self._leases:
            self._end((tenant, exact), Ending.ANSWERED)

    def expire(self) -> None:
        """End what nobody has kept."""
        now = self._clock()
        while self._leases:
            key, lease = next(iter(self._leases.items()))
            if lease.until_s > now:
                return
            self._end(key, Ending.EXPIRED)

    def _end(self, key: tuple[str, bytes], ending: Ending) -> None:
        del self._leases[key]
        self._on_end(*key, ending)


def _gives_way(lease: Lease, claim: Claim) -> bool:
    """Whether another router may have the lease: its holder is lost, or can share nothing."""
    return lease.router == claim.instead_of or (lease.is_private and not claim.is_private)
