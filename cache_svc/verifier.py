"""What a pair verifier is: the last word on whether two prompts mean the same.

Similarity cannot tell "Cancel my subscription" from "Do not cancel my
subscription" (cosine 0.97 with MiniLM). A verifier looks at both prompts and
may veto; it never lifts a candidate over the similarity floor.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Verdict(NamedTuple):
    """Whether a stored answer may be served for another prompt, and why not.

    ``reason`` may quote words of both prompts: it is content. It goes to a caller
    who asks Explain, never into telemetry. ``rule`` is a fixed word that may.
    """

    accepted: bool
    rule: str = ""
    reason: str = ""


ACCEPTED = Verdict(accepted=True)


class Look(NamedTuple):
    """A stored prompt that a lookup looks at.

    ``similarity``: cosine of its vector and the query's; at or above the floor already.
    """

    text: str
    similarity: float


class PairVerifier(Protocol):
    """Judges a pair of prompts of one scope. Deterministic and symmetric."""

    def screen(self, query: str, candidate: str, similarity: float) -> Verdict | None:
        """The verdict where cheap features settle it, within 1 ms; None: ask :meth:`verify`.

        A verdict given here is the one that :meth:`verify` would give.
        """
        ...

    def screen_each(self, query: str, candidates: Sequence[Look]) -> Iterator[Verdict | None]:
        """What :meth:`screen` says of each candidate, in their order, sooner than one by one.

        Lazy: whoever takes no further verdict saves what it would have cost.
        """
        ...

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        """Judge whether the answer to ``candidate`` also answers ``query``.

        May take some milliseconds, so that it belongs on a thread; safe on several.

        Args:
            query: the prompt asked now.
            candidate: the prompt whose answer is stored.
            similarity: cosine of their vectors; at or above the floor already.
        """
        ...
