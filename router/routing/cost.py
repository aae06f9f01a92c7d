"""Policies that weigh what a worker holds of a prompt against how busy it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from router.routing.policy import Candidate, PromptShape, best


class PrefixCost:
    """The lowest of uncached prefill + queued prefill + active decode, weighted.

    With weights of 1 this is the cost of Dynamo's KV router.

    Args:
        uncached: weight of a token of the prompt that the worker does not hold.
        active: weight of a token of its running sequences. A queued token weighs 1.
    """

    def __init__(self, uncached: float = 4.0, active: float = 0.25) -> None:
        self._uncached = uncached
        self._active = active

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        def cost(c: Candidate) -> float:
            uncached = prompt.tokens - c.held_tokens
            return (
                self._uncached * uncached + c.queued_prefill_tokens + self._active * c.active_tokens
            )

        return best(candidates, cost)


@dataclass(frozen=True, slots=True)
class Weights:
    """What :class:`LoyalPrefix` weighs; a token of queued or uncached prefill weighs 1.

    Attributes:
        active: of a token of a running sequence.
        recent: of a token prefilled of late.
        sequence: of a running sequence, whatever its length.
        loyalty: most that a held token can weigh beyond its own prefill.
        patience_tokens: beyond this scale loyalty grows with the root only.
    """

    active: float = 0.03
    recent: float = 0.2
    sequence: float = 0.0
    loyalty: float = 24.0
    patience_tokens: float = 2_000_000.0


class LoyalPrefix:
    """Uncached prefill, queue and decode, and a loyalty that grows less than linearly.

    Leaving the worker that holds most of a prompt costs more than this prompt's own
    prefill: the blocks come to be held twice and push out others, and the
    conversation's next turns find their parts in two places. That harm is large for
    every conversation that is torn apart, but not proportional to its length, so
    the loyalty to ``lost`` tokens is ``min(loyalty * lost, sqrt(patience_tokens * lost))``.
    A linear weight that keeps short conversations together makes long ones wait for
    minutes behind a busy worker; one that frees the long ones tears the short ones apart
    (docs/decisions/0015-routing.md has the figures).

    What was prefilled of late stands for pressure on a cache: of idle workers, a new
    conversation goes to the one where fewer blocks had to make room.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self._weights = weights or Weights()

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        weights = self._weights
        most = max(c.held_tokens for c in candidates)

        def cost(c: Candidate) -> float:
            lost = most - c.held_tokens
            loyalty = min(weights.loyalty * lost, sqrt(weights.patience_tokens * lost))
            return (
                loyalty
                + prompt.tokens
                - c.held_tokens
                + c.queued_prefill_tokens
                + weights.active * c.active_tokens
                + weights.recent * c.recent_prefill_tokens
                + weights.sequence * c.sequences
            )

        return best(candidates, cost)
