"""How busy a worker is: what this router sent there, and what others are said to have.

The router's own leases are exact and at hand at once; they are the floor. What a
worker reports of other routers' work comes late, and may be wrong or a lie: it only
adds to the floor, and no more than a bound.
"""

import math
from collections.abc import Callable

from sidecache.v1 import worker_pb2

# What a running sequence of another router is taken to hold.
_FOREIGN_SEQUENCE_TOKENS = 512
MAX_FOREIGN_SEQUENCES = 1024


class WorkerLoad:
    """The load of one worker, in tokens.

    Args:
        clock: monotonic seconds.

    Attributes:
        queued_tokens: uncached prompt tokens of own streams without a first token.
        pending_tokens: all prompt tokens of the same streams.
        active_tokens: prompt tokens of own streams.
        slots: sequences that can run there at once; 0: not known.
        most_slots: the same as last told: where it misses one report, its size is no less known.
        kv_tokens: tokens its KV cache can hold, as last told; 0: not known.
        foreign_sequences: streams of others there.
        kv_cache_usage: share of its KV blocks in use; None: it does not say.
        kv_blocks: that its KV cache can hold; None: it does not say.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.queued_tokens = 0
        self.pending_tokens = 0
        self.active_tokens = 0
        self.slots = 0
        self.most_slots = 0
        self.kv_tokens = 0
        self.foreign_sequences = 0
        self.kv_cache_usage: float | None = None
        self.kv_blocks: int | None = None
        self._foreign_queued = 0
        self._foreign_active = 0
        self._recent = 0.0
        self._recent_at = clock()

    @property
    def queued(self) -> int:
        """Prompt tokens that wait for their prefill, everybody's."""
        return self.queued_tokens + self._foreign_queued

    @property
    def active(self) -> int:
        """Tokens of running sequences, everybody's."""
        return self.active_tokens + self._foreign_active

    def recent(self, tau_s: float) -> float:
        """Tokens prefilled for this router; after ``tau_s`` one counts 1/e."""
        now = self._clock()
        self._recent *= math.exp((self._recent_at - now) / tau_s)
        self._recent_at = now
        return self._recent

    def restarts(self) -> None:
        """Forget its size: another process answers at its address."""
        self.most_slots = self.kv_tokens = 0

    def prefills(self, tokens: int, tau_s: float) -> None:
        """Count the prefill of a new stream."""
        self._recent = self.recent(tau_s) + tokens

    def hear(
        self,
        report: worker_pb2.GetLoadResponse | None,
        leases: int,
        max_foreign_tokens: int,
        block_size: int = 0,
    ) -> None:
        """Take in what the worker says; None: it said nothing, so nothing is assumed.

        Args:
            report: its answer.
            leases: streams that this router has there.
            max_foreign_tokens: more than this is not believed, of either kind.
            block_size: tokens in one of its KV blocks; 0: not known.
        """
        if report is None:
            self.slots = self.foreign_sequences = self._foreign_queued = self._foreign_active = 0
            self.kv_cache_usage = self.kv_blocks = None
            return
        said = report.HasField
        self.kv_cache_usage = report.kv_cache_usage if said("kv_cache_usage") else None
        self.kv_blocks = report.kv_blocks if said("kv_blocks") else None
        self.kv_tokens = report.kv_blocks * block_size
        queued = report.waiting_prompt_tokens - self.pending_tokens
        self._foreign_queued = min(max(0, queued), max_foreign_tokens)
        sequences = report.running_sequences + report.waiting_sequences - leases
        self.slots = self.most_slots = report.max_sequences
        self.foreign_sequences = min(max(0, sequences), MAX_FOREIGN_SEQUENCES)
        self._foreign_active = min(
            self.foreign_sequences * _FOREIGN_SEQUENCE_TOKENS, max_foreign_tokens
        )
