"""Which workers the routers speak of: the union of what each said last."""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class Membership:
    """Routers repeat their workers; one that falls silent is forgotten with them.

    Args:
        silence_s: after which a router is forgotten.
        max_routers: of more, the one silent for longest is forgotten.
        max_workers: of one router and of all; more are not taken in.
        clock: seconds, monotonic.
    """

    def __init__(
        self, silence_s: float, max_routers: int, max_workers: int, clock: Callable[[], float]
    ) -> None:
        self._silence_s = silence_s
        self._max_routers = max_routers
        self._max_workers = max_workers
        self._clock = clock
        self._routers: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()

    def heard(self, router: str, addresses: Iterable[str]) -> None:
        """A router has these workers now, and no others."""
        # In the order they were named, without repeats.
        named = tuple(dict.fromkeys(addresses))[: self._max_workers]
        self._routers[router] = (self._clock(), named)
        self._routers.move_to_end(router)
        if len(self._routers) > self._max_routers:
            self._routers.popitem(last=False)

    def addresses(self) -> list[str]:
        """Workers of all routers that are not silent, at most ``max_workers``."""
        oldest_s = self._clock() - self._silence_s
        while self._routers and next(iter(self._routers.values()))[0] < oldest_s:
            self._routers.popitem(last=False)
        union = dict.fromkeys(each for _, named in self._routers.values() for each in named)
        return list(union)[: self._max_workers]
