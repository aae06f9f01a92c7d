"""What was met in following workers' KV events: of one worker, and of all together."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from cache_svc.kv_stream import Fault


class FollowState(Enum):
    """How a worker is followed now."""

    CONNECTING = "connecting"
    FOLLOWING = "following"
    WITHOUT_EVENTS = "without_events"
    LOST = "lost"


@dataclass(slots=True)
class FollowTally:
    """Counts that only grow.

    Attributes:
        whole: counts the same for all workers, those that are gone included.
        events: messages taken in.
        blocks: stored or removed in them.
        repeated: events that were known already.
        resyncs: snapshots asked for again, by what was wrong.
    """

    whole: "FollowTally | None" = None
    events: int = 0
    blocks: int = 0
    repeated: int = 0
    resyncs: Counter[Fault] = field(default_factory=Counter)

    def took(self, blocks: int) -> None:
        """One message was applied, with so many blocks."""
        self.events += 1
        self.blocks += blocks
        if self.whole is not None:
            self.whole.took(blocks)

    def heard_again(self, events: int) -> None:
        """So many events were known already."""
        self.repeated += events
        if self.whole is not None:
            self.whole.heard_again(events)

    def resynced(self, fault: Fault) -> None:
        """What a worker held was dropped and asked for again."""
        self.resyncs[fault] += 1
        if self.whole is not None:
            self.whole.resynced(fault)
