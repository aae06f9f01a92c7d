"""Policies that send a conversation, or a shared prefix, to where it was before."""

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from router.routing.policy import Candidate, PromptShape, best

_BLOCK = 512


class SessionAffinity:
    """Every conversation at one worker, as long as that one is not overloaded.

    Rendezvous hashing (Thaler and Ravishankar, 1998): a worker that comes or goes
    moves only its own share of the conversations. The bound on load is that of
    "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, 2018): a worker
    above its bound is passed over for the conversation's next one.

    Args:
        slack: times the mean load a worker may have.
        spare_tokens: more than that before it is passed over.
    """

    def __init__(self, slack: float = 1.5, spare_tokens: int = 256 * _BLOCK) -> None:
        self._slack = slack
        self._spare_tokens = spare_tokens

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        bound = self._slack * sum(c.load for c in candidates) / len(candidates)
        bound += self._spare_tokens
        fitting = [c for c in candidates if c.load <= bound] or candidates
        return max(fitting, key=lambda c: xxh3_64_intdigest(c.name.encode(), prompt.affinity))


class Threshold:
    """The longest prefix if it is above half of the prompt, unless the fleet is imbalanced.

    As SGLang's router does it, for comparison: in an imbalance it gives up all affinity.
    """

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        loads = [c.load for c in candidates]
        is_imbalanced = max(loads) - min(loads) > 64 * _BLOCK and max(loads) > 1.5 * min(loads)
        longest = _longest(candidates)
        if not is_imbalanced and 2 * longest.held_tokens > prompt.tokens:
            return longest
        return best(candidates, lambda c: c.load)


class BoundedAffinity:
    """The longest prefix from two blocks on, unless its worker is above a bound on load."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        longest = _longest(candidates)
        bound = 1.5 * sum(c.load for c in candidates) / len(candidates) + 64 * _BLOCK
        if longest.held_tokens >= 2 * _BLOCK and longest.load <= bound:
            return longest
        return best(candidates, lambda c: c.load)


def _longest(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda c: (c.held_tokens, -c.load))
