"""What was routed of late, until the workers' own events say so.

Prompts that follow one another within milliseconds share prefixes; the events of the
first one's blocks come only after its prefill. Without this, a burst of one
conversation, or of one new system prompt, is spread over the whole fleet.
"""

from collections import OrderedDict
from collections.abc import Sequence

# Workers remembered for one name; the others of a prefix that all share are no news.
_MAX_WORKERS = 8


class RecentRoutes:
    """Names of prefixes, and the workers they were sent to; bounded.

    A name stands for everything before it, like a KV block's.

    Args:
        max_names: the ones noted longest ago are forgotten first.
    """

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._sent: OrderedDict[int, dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def note(self, names: Sequence[int], worker: str, now: float) -> None:
        """Remember that a prompt of these prefixes was sent to a worker."""
        sent = self._sent
        # The longest first, so that what leaves first is the end of a prompt.
        for name in reversed(names[: self._max_names]):
            workers = sent.get(name)
            if workers is None:
                sent[name] = {worker: now}
                continue
            sent.move_to_end(name)
            workers.pop(worker, None)
            workers[worker] = now
            if len(workers) > _MAX_WORKERS:
                del workers[next(iter(workers))]
        while len(sent) > self._max_names:
            sent.popitem(last=False)

    def match(self, names: Sequence[int], since: float) -> dict[str, int]:
        """How many leading prefixes were sent to each worker at ``since`` or later."""
        found: dict[str, int] = {}
        for depth, name in enumerate(names, 1):
            workers = self._sent.get(name)
            if workers is None:
                break
            for worker, sent_at in workers.items():
                if sent_at >= since and found.get(worker, 0) == depth - 1:
                    found[worker] = depth
        return found
