"""One word exchanged for another: the same question about something else."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from cache_svc.guard.meaning import is_synonym
from cache_svc.guard.words import Word, listed

# Up to so many words of meaning, or this share of those both prompts say, count
# as exchanged rather than as another wording.
_MAX_EXCHANGED = 2
_EXCHANGED_SHARE = 0.25
_MAX_COMPARED = 24
# Typing errors: one edit in a word of 4 letters, two in one of 8.
_MIN_TYPO = 4
_LONG_WORD = 8
# Words of one family share so many letters and differ in these endings only.
_MIN_ROOT = 5
_DERIVATIONS = listed(
    """e s es ed ing ings ion ions ation ations ment ments al als er ers or ors ance ence
    ly ity ness able ive y ies"""
) | {""}


class Difference(NamedTuple):
    """Words of meaning said by one prompt only, and how many both say."""

    one: tuple[Word, ...]
    other: tuple[Word, ...]
    shared: int


def difference(one: Sequence[Word], other: Sequence[Word], known: AbstractSet[str]) -> Difference:
    """The words of meaning that only one of two prompts has.

    Synonyms, forms of one word and typing errors have cancelled out.

    Args:
        one: the first prompt's words of meaning.
        other: the second's.
        known: words that are spelled right; a word that is not may be a typing
            error of one that is.
    """
    said_here, said_there = {w.stem for w in one}, {w.stem for w in other}
    shared = len(said_here & said_there)
    only_here = [w for w in one if w.stem not in said_there]
    only_there = [w for w in other if w.stem not in said_here]
    if min(len(only_here), len(only_there)) > _MAX_COMPARED:
        # So far apart that pairing words off proves nothing; and it takes quadratic time.
        return Difference(tuple(only_here), tuple(only_there), shared)
    for same in (_is_synonym, _is_same_family, partial(_is_typo, known=known)):
        only_here, only_there = _cancel(only_here, only_there, same)
    return Difference(tuple(only_here), tuple(only_there), shared)


def same_words(one: Sequence[Word], other: Sequence[Word], known: AbstractSet[str]) -> bool:
    """Whether :func:`difference` leaves nothing of either prompt, told sooner."""
    said_here, said_there = {w.stem for w in one}, {w.stem for w in other}
    only_here = sum(w.stem not in said_there for w in one)
    # Words pair off one by one, so that of unequal numbers some are left.
    if only_here != sum(w.stem not in said_here for w in other):
        return False
    rest = difference(one, other, known)
    return not rest.one and not rest.other


def exchanged(difference: Difference) -> str:
    """The words that stand for one another in two prompts otherwise alike, or "".

    A prompt reworded throughout shares few words and is left to similarity; one
    that exchanges a word or two, or a small part of many, asks about something else.
    """
    one, other, shared = difference
    few = max(_MAX_EXCHANGED, int(shared * _EXCHANGED_SHARE))
    if not one or not other or max(len(one), len(other)) > few:
        return ""
    return f"{' '.join(w.text for w in one)} for {' '.join(w.text for w in other)}"


def names_differ(difference: Difference) -> str:
    """The proper names that only one of two prompts says, or ""."""
    return ", ".join(w.text for w in (*difference.one, *difference.other) if w.name)


def _cancel(
    one: Sequence[Word], other: Sequence[Word], same: Callable[[Word, Word], bool]
) -> tuple[list[Word], list[Word]]:
    """What is left of both once words that mean the same have paired off."""
    rest, left = [], list(other)
    for word in one:
        partner = next((w for w in left if same(word, w)), None)
        if partner is None:
            rest.append(word)
        else:
            left.remove(partner)
    return rest, left


def _is_synonym(one: Word, other: Word) -> bool:
    return is_synonym(one.stem, other.stem)


def _is_same_family(one: Word, other: Word) -> bool:
    """Whether both grow from one root: align and alignment, negotiate and negotiation."""
    pairs = zip(one.text, other.text, strict=False)
    root = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if root < _MIN_ROOT:
        return False
    return one.text[root:] in _DERIVATIONS and other.text[root:] in _DERIVATIONS


def _is_typo(one: Word, other: Word, known: AbstractSet[str]) -> bool:
    """Whether one is the other spelled wrong: near it, and no word itself."""
    if one.text in known and other.text in known:
        return False
    length = min(len(one.text), len(other.text))
    if length < _MIN_TYPO:
        return False
    return edits_within(one.text, other.text, 2 if length >= _LONG_WORD else 1)


def edits_within(one: str, other: str, limit: int) -> bool:
    """Whether so many insertions, deletions, changes and swaps of neighbours suffice.

    Optimal string alignment (Damerau, 1964), row by row.
    """
    if abs(len(one) - len(other)) > limit:
        return False
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1] <= limit
