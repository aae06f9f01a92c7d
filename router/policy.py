"""Which worker gets the next stream: pure functions over candidates."""

from collections.abc import Sequence
from typing import Protocol

from router.worker import Worker


class RoutingPolicy(Protocol):
    """Chooses among workers that are all able to serve the request."""

    def choose(self, candidates: Sequence[Worker]) -> Worker:
        """Return one of the candidates, of which there is at least one.

        Pure: the choice depends on the candidates alone, and changes nothing.
        """
        ...


class LeastLoaded:
    """The worker with the fewest streams; of equals the one left alone longest."""

    def choose(self, candidates: Sequence[Worker]) -> Worker:
        return min(candidates, key=lambda worker: (worker.leases, worker.last_lease))
