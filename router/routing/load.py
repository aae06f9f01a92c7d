"""Policies that look at load alone, or at nothing."""

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from router.routing.policy import Candidate, PromptShape


class RoundRobin:
    """Each worker in its turn."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        return candidates[prompt.number % len(candidates)]


class LeastLoaded:
    """The worker with the fewest tokens to prefill and decode."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        return min(candidates, key=lambda c: (c.load, c.order))


class PowerOfTwo:
    """The less loaded of two workers drawn at random.

    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001. Many
    routers with stale figures do not all run to the same idle worker.

    Args:
        seed: routers should have different ones.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        count = len(candidates)
        draw = xxh3_64_intdigest(prompt.number.to_bytes(8, "little"), self._seed)
        first, step = draw % count, (draw >> 32) % max(1, count - 1)
        # Two different ones, where there are two.
        second = (first + 1 + step) % count
        pair = (candidates[first], candidates[second])
        return min(pair, key=lambda c: (c.load, c.order))
