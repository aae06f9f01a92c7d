"""What a routing policy sees and answers; the router and the replay benchmark share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that is able to serve the prompt. Load is counted in tokens.

    Attributes:
        name: stays the same while the worker lives; hashed by affinity policies.
        held_tokens: of the prompt, leading ones in the worker's KV cache.
        queued_prefill_tokens: still to be prefilled there before this prompt.
        active_tokens: held by sequences that decode there, or soon will.
        recent_prefill_tokens: prefilled there of late: each one fades with the time since.
        sequences: streams there.
        order: of workers that are equal otherwise, the lowest is chosen.
    """

    name: str
    held_tokens: int = 0
    queued_prefill_tokens: float = 0.0
    active_tokens: float = 0.0
    recent_prefill_tokens: float = 0.0
    sequences: int = 0
    order: int = 0

    @property
    def load(self) -> float:
        """Tokens that the worker is busy with."""
        return self.queued_prefill_tokens + self.active_tokens


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What of a prompt matters to where it goes; nothing of its content.

    Attributes:
        tokens: length of the prompt, counted or estimated.
        affinity: equal for the prompts of one conversation; 64 bits.
        number: of this choice among all choices, from 0; what round robin turns by and
            random policies draw by, so that a policy keeps no state.
    """

    tokens: int
    affinity: int = 0
    number: int = 0


class RoutingPolicy(Protocol):
    """Chooses among workers that are all able to serve the prompt."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        """Return one of the candidates, of which there is at least one.

        Pure: the same arguments give the same choice, and nothing is remembered.
        """
        ...


def best(candidates: Sequence[Candidate], cost: Callable[[Candidate], float]) -> Candidate:
    """The candidate of the lowest cost; of equals, the one with the lowest order."""
    return min(candidates, key=lambda candidate: (cost(candidate), candidate.order))
