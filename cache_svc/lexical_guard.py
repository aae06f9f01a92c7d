"""The first pair verifier: facts that a small embedder overlooks, compared as words.

Each rule may only veto. They are ordered from the surest to the boldest; the
decision page on the semantic tier has what each of them catches and costs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cache_svc.guard.additions import weighty_addition
from cache_svc.guard.contrasts import contrast
from cache_svc.guard.exchange import (
    Difference,
    difference,
    exchanged,
    names_differ,
    same_words,
)
from cache_svc.guard.literals import read_literals
from cache_svc.guard.meaning import content
from cache_svc.guard.negation import is_negated
from cache_svc.guard.order import Order, order_differs, read_order
from cache_svc.guard.quantities import Figures, figures_differ, read_figures
from cache_svc.guard.words import Word, listed, read_words
from cache_svc.verifier import ACCEPTED, Look, Verdict

# Little words that change a question: its kind, its time, its duty.
_ASKING = listed(
    """who whom whose what which when where why how long many much far often
    should must ought was were did will would been had only"""
)
# Characters of most prompts.
_SHORT = 256
_VOCABULARY = Path(__file__).parent / "minilm" / "tokenizer.json"


class Reading(NamedTuple):
    """What the guard reads out of one prompt.

    Attributes:
        content: the words that carry its meaning.
        stems: of all its words but numbers and their units.
        asking: the little words that change a question.
    """

    words: tuple[Word, ...]
    content: tuple[Word, ...]
    stems: frozenset[str]
    figures: Figures
    literals: frozenset[str]
    negated: bool
    order: Order
    asking: frozenset[str]


class LexicalGuard:
    """Vetoes pairs that differ in a number, a negation, an opposite, a name, a direction.

    Args:
        known_words: words spelled right, in lower case; None: those that are whole
            pieces of the embedder's vocabulary.
        kept_readings: prompts whose readings are kept, 3 KB each, since a stored one is
            compared with every query near it; of long ones an eighth as many.
    """

    def __init__(
        self, known_words: AbstractSet[str] | None = None, *, kept_readings: int = 8192
    ) -> None:
        self._known = _vocabulary() if known_words is None else known_words
        self._read_short = lru_cache(kept_readings)(read)
        self._read_long = lru_cache(kept_readings // 8)(read)

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        """Veto a pair that differs in a fact or a word; similarity plays no part in it."""
        fact = self.facts(query, candidate)
        return self.wordings(query, candidate) if fact.accepted else fact

    def screen(self, query: str, candidate: str, similarity: float) -> Verdict | None:
        """All of the guard is cheap, so that its screen is its last word."""
        return self.verify(query, candidate, similarity)

    def screen_each(self, query: str, candidates: Sequence[Look]) -> Iterator[Verdict]:
        """Each verdict when it is asked for."""
        return (self.verify(query, *candidate) for candidate in candidates)

    def facts(self, query: str, candidate: str) -> Verdict:
        """Only the surest rules: numbers, negation, opposites, order, quotations."""
        one, other = self._read(query), self._read(candidate)
        for rule, differs in _FACTS.items():
            if reason := differs(one, other):
                return Verdict(accepted=False, rule=rule, reason=f"{rule}: {reason}")
        return ACCEPTED

    def wordings(self, query: str, candidate: str) -> Verdict:
        """Only the bolder rules: words that one prompt says and the other does not."""
        rest = self.difference(query, candidate)
        for rule, differs_in in _WORDINGS.items():
            if reason := differs_in(rest):
                return Verdict(accepted=False, rule=rule, reason=f"{rule}: {reason}")
        return ACCEPTED

    def _read(self, text: str) -> Reading:
        return self._read_short(text) if len(text) <= _SHORT else self._read_long(text)

    def difference(self, query: str, candidate: str) -> Difference:
        """The words of meaning that only one of both prompts says."""
        one, other = self._read(query), self._read(candidate)
        return difference(one.content, other.content, self._known)

    def says_the_same(self, query: str, candidate: str) -> bool:
        """Whether both ask in the same words, in the same order, up to spelling and courtesy.

        Presumes that :meth:`facts` lets the pair pass.
        """
        one, other = self._read(query), self._read(candidate)
        if one.asking != other.asking or not same_words(one.content, other.content, self._known):
            return False
        shared = one.stems & other.stems
        return [w.stem for w in one.content if w.stem in shared] == [
            w.stem for w in other.content if w.stem in shared
        ]


def read(text: str) -> Reading:
    """Read a prompt once for all rules."""
    words = tuple(read_words(text))
    figures, order = read_figures(words), read_order(words)
    stems = order.stems  # the same object where nothing counts: half the memory
    if figures.spent:
        stems = frozenset(w.stem for at, w in enumerate(words) if at not in figures.spent)
    return Reading(
        words,
        content(words, figures.spent),
        stems,
        figures,
        read_literals(text),
        is_negated(words),
        order,
        _ASKING.intersection([word.text for word in words]),
    )


def _negation(one: Reading, other: Reading) -> str:
    return "only one is negated" if one.negated != other.negated else ""


def _literals(one: Reading, other: Reading) -> str:
    differing = one.literals ^ other.literals
    return f"only one quotes {', '.join(sorted(differing))}" if differing else ""


_FACTS: dict[str, Callable[[Reading, Reading], str]] = {
    "numbers": lambda one, other: figures_differ(one.figures, other.figures),
    "negation": _negation,
    "opposites": lambda one, other: contrast(one.stems - other.stems, other.stems - one.stems),
    "order": lambda one, other: order_differs(one.order, other.order),
    "literals": _literals,
}
_WORDINGS = {"names": names_differ, "additions": weighty_addition, "exchange": exchanged}


def _vocabulary() -> frozenset[str]:
    pieces = json.loads(_VOCABULARY.read_bytes())["model"]["vocab"]
    return frozenset(piece for piece in pieces if piece.isalpha())
