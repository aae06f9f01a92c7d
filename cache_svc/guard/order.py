"""Prompts of the same words in another order: from X to Y is not from Y to X."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from cache_svc.guard.words import Word, listed

_DIRECTIONS = listed("to into from than before after over under versus")
# "how to open", "want to open": a verb follows, not a place.
_BEFORE_VERB = listed(
    "how want need like have going way ways where what try trying able possible used is"
)
_SKIPPED = listed("a an the my your our their his her its this that some any i you we be is are do")
_SYMMETRIC = listed("and or between vs versus with both compare same")
_NO_TARGETS: Mapping[str, frozenset[str]] = {}


class Order(NamedTuple):
    """What of a prompt's order is compared.

    Attributes:
        stems: of all its words.
        targets: for each direction, the first words of meaning that follow it.
    """

    words: Sequence[Word]
    stems: frozenset[str]
    targets: Mapping[str, AbstractSet[str]]


def read_order(words: Sequence[Word]) -> Order:
    """Read a prompt's order once for all comparisons."""
    return Order(words, frozenset(word.stem for word in words), _targets(words))


def order_differs(one: Order, other: Order) -> str:
    """How the roles of two words are exchanged between the prompts, or ""."""
    return _roles_swapped(one, other) or _names_swapped(one, other)


def _roles_swapped(one: Order, other: Order) -> str:
    """A word after a direction in one prompt stands elsewhere in the other, and vice versa."""
    for direction, first in one.targets.items():
        second = other.targets.get(direction, frozenset())
        gone, come = first - second, second - first
        if gone & other.stems and come & one.stems:
            return f"{direction} {min(gone & other.stems)}, {direction} {min(come & one.stems)}"
    return ""


def _targets(words: Sequence[Word]) -> Mapping[str, AbstractSet[str]]:
    """For each direction, the first words of meaning that follow it."""
    if _DIRECTIONS.isdisjoint([word.text for word in words]):
        return _NO_TARGETS
    targets: dict[str, set[str]] = {}
    for at, word in enumerate(words):
        verb_follows = word.text == "to" and at and words[at - 1].text in _BEFORE_VERB
        if word.text in _DIRECTIONS and not verb_follows:
            following = (w for w in words[at + 1 :] if w.text not in _SKIPPED)
            target = next(following, None)
            if target is not None:
                targets.setdefault(word.text, set()).add(target.stem)
    return targets


def _names_swapped(one: Order, other: Order) -> str:
    """The same words, but names or numbers in another sequence."""
    if len(one.words) != len(other.words) or one.stems != other.stems:
        return ""
    if sorted(w.stem for w in one.words) != sorted(w.stem for w in other.words):
        return ""
    if any(w.text in _SYMMETRIC for w in one.words):
        return ""
    names_one = [w.stem for w in one.words if w.name or w.text[0].isdigit()]
    names_other = [w.stem for w in other.words if w.name or w.text[0].isdigit()]
    if sorted(names_one) == sorted(names_other) and names_one != names_other:
        return f"{' '.join(names_one)}, {' '.join(names_other)}"
    return ""
