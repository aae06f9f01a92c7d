"""Prompts of the same words in another order: from X to Y is not from Y to X."""

from collections.abc import Sequence

from cache_svc.guard.words import Word, listed

_DIRECTIONS = listed("to into from than before after over under versus")
# "how to open", "want to open": a verb follows, not a place.
_BEFORE_VERB = listed(
    "how want need like have going way ways where what try trying able possible used is"
)
_SKIPPED = listed("a an the my your our their his her its this that some any i you we be is are do")
_SYMMETRIC = listed("and or between vs versus with both compare same")


def order_differs(one: Sequence[Word], other: Sequence[Word]) -> str:
    """How the roles of two words are exchanged between the prompts, or ""."""
    return _roles_swapped(one, other) or _names_swapped(one, other)


def _roles_swapped(one: Sequence[Word], other: Sequence[Word]) -> str:
    """A word after a direction in one prompt stands elsewhere in the other, and vice versa."""
    words_one, words_other = _stems(one), _stems(other)
    targets_one, targets_other = _targets(one), _targets(other)
    for direction, first in targets_one.items():
        second = targets_other.get(direction, set())
        gone, come = first - second, second - first
        if gone & words_other and come & words_one:
            return f"{direction} {min(gone & words_other)}, {direction} {min(come & words_one)}"
    return ""


def _targets(words: Sequence[Word]) -> dict[str, set[str]]:
    """For each direction, the first words of meaning that follow it."""
    targets: dict[str, set[str]] = {}
    for at, word in enumerate(words):
        verb_follows = word.text == "to" and at and words[at - 1].text in _BEFORE_VERB
        if word.text in _DIRECTIONS and not verb_follows:
            following = (w for w in words[at + 1 :] if w.text not in _SKIPPED)
            target = next(following, None)
            if target is not None:
                targets.setdefault(word.text, set()).add(target.stem)
    return targets


def _names_swapped(one: Sequence[Word], other: Sequence[Word]) -> str:
    """The same words, but names or numbers in another sequence."""
    if sorted(w.stem for w in one) != sorted(w.stem for w in other):
        return ""
    if any(w.text in _SYMMETRIC for w in one):
        return ""
    names_one = [w.stem for w in one if w.name or w.text[0].isdigit()]
    names_other = [w.stem for w in other if w.name or w.text[0].isdigit()]
    if sorted(names_one) == sorted(names_other) and names_one != names_other:
        return f"{' '.join(names_one)}, {' '.join(names_other)}"
    return ""


def _stems(words: Sequence[Word]) -> set[str]:
    return {word.stem for word in words}
