"""A fleet of simulated workers: what a routing policy makes of a trace.

A worker prefills first come, first served, over uncached tokens, then decodes at a
fixed pace; its cache is an LRU of blocks in which a prompt's root is touched last,
so that leaves go first. A block counts as cached as soon as its request is routed.
What each cache holds reaches the policy as it does in a router: through the prefix
index, fed by events that may be late or lost, and the router's own recent routes.
"""

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.traces import TraceRequest
from router.routing.policy import Candidate, PromptShape, RoutingPolicy
from router.routing.recent import RecentRoutes

_RECENT_NAMES = 65536


class Index(Protocol):
    """What the replay asks of :class:`cache_svc.prefix_index.PrefixIndex`."""

    def stored(self, worker: str, hashes: Sequence[int]) -> None:
        """A worker holds these blocks now."""
        ...

    def removed(self, worker: str, hashes: Sequence[int]) -> None:
        """A worker no longer holds these."""
        ...

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """Leading blocks held by each worker."""
        ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers, and how the router hears of them.

    Attributes:
        recent_tau_s: after this time a prefilled token counts 1/e in Candidate.recent.
        note_s: for how long the router remembers its own routes; 0: not at all.
        ttft_limit_s: a request above it is not goodput.
        max_queue_s: a worker with more prefill waiting takes nothing; when all have more, a
            request is refused. Infinite: nobody ever is.
    """

    workers: int = 4
    blocks: int = 4000
    block_size: int = 512
    prefill_tps: float = 20_000.0
    tpot_s: float = 0.02
    event_delay_s: float = 0.0
    lost_events: float = 0.0
    recent_tau_s: float = 300.0
    note_s: float = 2.0
    ttft_limit_s: float = 2.0
    max_queue_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a replay; times in seconds, shares from 0 to 1."""

    hit_rate: float
    ttft_mean_s: float
    ttft_p99_s: float
    imbalance: float
    goodput: float
    refused: int


class BlockCache:
    """An LRU of blocks; None: unbounded."""

    def __init__(self, capacity: int | None) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def match(self, blocks: Sequence[int]) -> int:
        """Leading blocks that it holds."""
        for depth, block in enumerate(blocks):
            if block not in self._blocks:
                return depth
        return len(blocks)

    def add(self, blocks: Sequence[int]) -> list[int]:
        """Take in a prompt, its root as the newest; return what had to leave."""
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        gone = []
        while self._capacity is not None and len(self._blocks) > self._capacity:
            gone.append(self._blocks.popitem(last=False)[0])
        return gone


@dataclass(slots=True)
class _Worker:
    name: str
    cache: BlockCache
    free_at: float = 0.0
    decoding: list[tuple[float, int]] = field(default_factory=list)
    active_tokens: int = 0
    served: int = 0
    prefilled: int = 0
    recent: float = 0.0
    recent_at: float = 0.0

    def advance(self, now: float, tau_s: float) -> None:
        while self.decoding and self.decoding[0][0] <= now:
            self.active_tokens -= heapq.heappop(self.decoding)[1]
        self.recent *= math.exp((self.recent_at - now) / tau_s)
        self.recent_at = now


class Replay:
    """One trace against one policy."""

    def __init__(self, fleet: Fleet, policy: RoutingPolicy, index: Index, seed: int = 0) -> None:
        self._fleet = fleet
        self._policy = policy
        self._index = index
        self._workers = {
            f"w{n}": _Worker(f"w{n}", BlockCache(fleet.blocks)) for n in range(fleet.workers)
        }
        self._events: deque[tuple[float, str, Sequence[int], Sequence[int]]] = deque()
        self._recent = RecentRoutes(_RECENT_NAMES)
        self._chance = random.Random(seed)  # noqa: S311 - a simulation
        self._hit_blocks = self._blocks = self._refused = 0
        self._ttft: list[float] = []

    def run(self, trace: Sequence[TraceRequest]) -> Figures:
        """Replay every request, in order."""
        for number, request in enumerate(trace):
            self._hear_events(request.at_s)
            for worker in self._workers.values():
                worker.advance(request.at_s, self._fleet.recent_tau_s)
            candidates = self._candidates(request)
            if not candidates:
                self._refused += 1
                continue
            shape = PromptShape(
                len(request.blocks) * self._fleet.block_size, request.affinity, number
            )
            chosen = self._policy.choose(candidates, shape)
            self._serve(self._workers[chosen.name], request)
        return self._figures(len(trace))

    def _candidates(self, request: TraceRequest) -> list[Candidate]:
        fleet, now = self._fleet, request.at_s
        held = self._index.match(request.blocks)
        if fleet.note_s:
            for name, depth in self._recent.match(request.blocks, now - fleet.note_s).items():
                held[name] = max(depth, held.get(name, 0))
        return [
            Candidate(
                worker.name,
                held_tokens=held.get(worker.name, 0) * fleet.block_size,
                queued_prefill_tokens=max(0.0, worker.free_at - now) * fleet.prefill_tps,
                active_tokens=worker.active_tokens,
                recent_prefill_tokens=worker.recent,
                sequences=len(worker.decoding),
                order=worker.served,
            )
            for worker in self._workers.values()
            if worker.free_at - now <= fleet.max_queue_s
        ]

    def _serve(self, worker: _Worker, request: TraceRequest) -> None:
        fleet, now, blocks = self._fleet, request.at_s, request.blocks
        hit = worker.cache.match(blocks)
        self._hit_blocks += hit
        self._blocks += len(blocks)
        if fleet.note_s:
            self._recent.note(blocks, worker.name, now)
        self._tell(now, worker, blocks[hit:], worker.cache.add(blocks))
        prefill = max(request.input_tokens - hit * fleet.block_size, 1)
        worker.prefilled += prefill
        worker.recent += (len(blocks) - hit) * fleet.block_size
        worker.served += 1
        worker.free_at = max(now, worker.free_at) + prefill / fleet.prefill_tps
        self._ttft.append(worker.free_at - now)
        held = (len(blocks) + request.output_tokens // fleet.block_size) * fleet.block_size
        ends_at = worker.free_at + request.output_tokens * fleet.tpot_s
        heapq.heappush(worker.decoding, (ends_at, held))
        worker.active_tokens += held

    def _tell(
        self, now: float, worker: _Worker, stored: Sequence[int], removed: Sequence[int]
    ) -> None:
        """Send the events of one request on their way; a lost one is never made good."""
        fleet = self._fleet
        if fleet.lost_events:
            stored = () if self._chance.random() < fleet.lost_events else stored
            removed = () if self._chance.random() < fleet.lost_events else removed
        self._events.append((now + fleet.event_delay_s, worker.name, stored, removed))

    def _hear_events(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            _, name, stored, removed = self._events.popleft()
            self._index.stored(name, stored)
            self._index.removed(name, removed)

    def _figures(self, requests: int) -> Figures:
        fleet, ttft = self._fleet, sorted(self._ttft)
        work = [worker.prefilled for worker in self._workers.values()]
        return Figures(
            hit_rate=self._hit_blocks / self._blocks,
            ttft_mean_s=sum(ttft) / len(ttft),
            ttft_p99_s=ttft[int(len(ttft) * 0.99)],
            imbalance=max(work) * len(work) / sum(work),
            goodput=sum(s <= fleet.ttft_limit_s for s in ttft) / requests,
            refused=self._refused,
        )


def pooled_hit_rate(trace: Sequence[TraceRequest], blocks: int | None) -> float:
    """The hit rate of one cache for all workers, of their blocks together."""
    cache = BlockCache(blocks)
    hit = total = 0
    for request in trace:
        hit += cache.match(request.blocks)
        total += len(request.blocks)
        cache.add(request.blocks)
    return hit / total
