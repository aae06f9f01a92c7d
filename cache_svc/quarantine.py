"""Requests whose answers were served wrongly once and are kept from it since."""

from collections import OrderedDict

from cache_svc.entry import Key


class Quarantine:
    """Bars requests from the semantic tier after a wrong hit was reported.

    Removing the wrong entry is not enough: the next time its own request is asked,
    the same answer is stored again and serves the same look-alikes. A barred
    request keeps its exact hits only.

    Args:
        max_requests: the oldest bar is lifted for a newer one beyond this number.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._barred: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def bar(self, key: Key) -> None:
        """Keep answers to this request out of the semantic tier."""
        self._barred[key.tenant, key.exact] = None
        self._barred.move_to_end((key.tenant, key.exact))
        while len(self._barred) > self._max_requests:
            self._barred.popitem(last=False)

    def holds(self, key: Key) -> bool:
        """Whether answers to this request may not be served to others like it."""
        return (key.tenant, key.exact) in self._barred
