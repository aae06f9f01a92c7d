"""Families of synthetic pairs, made anew from a seed.

Sources: contrast sets written for this project, texts of banking77 (PolyAI, CC BY 4.0)
and the half of the fow-cache pairs that may be learned from (CC BY 4.0).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from training.verifier.edits import EDITS
from training.verifier.pairs import Pair, share
from training.verifier.rewrites import rewrite

_HERE = Path(__file__).parent
_DEV_SHARE = 0.15
_CATEGORIES = {"-": "negation", "^": "scope", "~": "entity_swap"}
_UNDIRECTED = ("between", "distance", "better", "together", "harder", "longer")
_COUNTED = re.compile(r"\{(n|time|money|unit|day)2?\}")
_SLOT = re.compile(r"\{(\w+?)(2?)\}")


_ASKS = re.compile(
    r"(how|what|which|who|where|when|why|is|are|do|does|did|can|could|may|will|should|am|has)\b"
)


class Meaning(NamedTuple):
    """One line of a contrast set."""

    category: str
    wordings: tuple[str, ...]


def contrast_sets(*, dev: bool) -> list[list[Meaning]]:
    """The contrast sets to learn from, or those kept for tuning thresholds."""
    lines = (_HERE / "contrasts.txt").read_text().splitlines()
    blocks = "\n".join(line for line in lines if not line.startswith("#")).strip().split("\n\n")
    sets = [[_meaning(line) for line in block.splitlines()] for block in blocks]
    return [s for s in sets if (share(s[0].wordings[0]) < _DEV_SHARE) == dev]


def _meaning(line: str) -> Meaning:
    wordings = tuple(wording.strip() for wording in line[1:].split("|"))
    return Meaning(_CATEGORIES.get(line[0], ""), wordings)


def slots() -> dict[str, list[str]]:
    """What fills the slots, by name."""
    lines = (_HERE / "slots.txt").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if not line.startswith("#"))
    return {name: [value.strip() for value in values.split(",")] for name, values in pairs}


class Families:
    """An endless, repeatable source of labelled pairs.

    Args:
        texts: (text, intent) of real questions to edit.
        real: labelled pairs of real prompts.
        dev: draw from the contrast sets kept for tuning.
    """

    def __init__(
        self,
        texts: Sequence[tuple[str, str]],
        real: Sequence[Pair],
        *,
        seed: int,
        dev: bool = False,
    ) -> None:
        self._rng = Random(seed)
        self._sets = contrast_sets(dev=dev)
        self._counted = [m for s in self._sets for m in s if _COUNTED.search(m.wordings[0])]
        self._slots = slots()
        self._texts = list(texts)
        self._by_word = _inverted(texts)
        self._real = list(real)

    def pairs(self, count: int) -> list[Pair]:
        """So many pairs, the families mixed; the order of a pair is random."""
        return [self._turned(pair) for pair in islice(self._mixed(), count)]

    def _mixed(self) -> Iterator[Pair]:
        makers = {
            self._same_meaning: 26,
            self._other_meaning: 22,
            self._other_slot: 12,
            self._rewritten: 14,
            self._edited: 14,
            self._neighbour: 4,
            self._other_topic: 2,
            self._known: 8 if self._real else 0,
        }
        while True:
            (make,) = self._rng.choices(list(makers), list(makers.values()))
            pair = make()
            if pair is not None and pair.a != pair.b:
                yield pair

    def _turned(self, pair: Pair) -> Pair:
        return pair._replace(a=pair.b, b=pair.a) if self._rng.random() < 0.5 else pair

    def _fill(self) -> dict[str, str]:
        filled = {}
        for name, values in self._slots.items():
            filled[name], filled[f"{name}2"] = self._rng.sample(values, 2)
        return filled

    def _say(self, wording: str, filled: dict[str, str]) -> str:
        text = _SLOT.sub(lambda slot: filled[slot[1] + slot[2]], wording)
        text = re.sub(r"\ba (?=[aeio])", "an ", text)
        asks = _ASKS.match(text)
        text = text[:1].upper() + text[1:] + ("?" if asks else "")
        text = re.sub(r"\bi\b", "I", text)
        return rewrite(text, self._rng) if self._rng.random() < 0.3 else text

    def _same_meaning(self) -> Pair | None:
        meaning = self._rng.choice(self._rng.choice(self._sets))
        filled = self._fill()
        one, other = (self._rng.sample(meaning.wordings, 2) if len(meaning.wordings) > 1
                      else meaning.wordings * 2)  # fmt: skip
        return Pair(self._say(one, filled), self._say(other, filled), True, "paraphrase")

    def _other_meaning(self) -> Pair | None:
        contrast_set = self._rng.choice(self._sets)
        one, other = self._rng.sample(contrast_set, 2)
        filled = self._fill()
        a, b = (self._say(self._rng.choice(m.wordings), filled) for m in (one, other))
        return Pair(a, b, False, other.category or one.category)

    def _other_slot(self) -> Pair | None:
        meaning = self._rng.choice(self._rng.choice(self._sets))
        if self._rng.random() < 0.4 and self._counted:
            meaning = self._rng.choice(self._counted)
        one = self._rng.choice(meaning.wordings)
        other = one if self._rng.random() < 0.5 else self._rng.choice(meaning.wordings)
        names = sorted(set(_SLOT.findall(one)) & set(_SLOT.findall(other)))
        if not names:
            return None
        filled = self._fill()
        name, second = self._rng.choice(names)
        changed = dict(filled)
        directed = not any(word in w for w in meaning.wordings for word in _UNDIRECTED)
        if (name, "2") in names and directed and self._rng.random() < 0.6:
            changed[name], changed[f"{name}2"] = filled[f"{name}2"], filled[name]
        else:
            fresh = [v for v in self._slots[name] if v not in (filled[name], filled[f"{name}2"])]
            changed[name + second] = self._rng.choice(fresh)
        number = name in {"n", "time", "money", "unit", "day"}
        return Pair(
            self._say(one, filled),
            self._say(other, changed),
            False,
            "number_date" if number else "entity_swap",
        )

    def _source(self) -> str:
        if self._real and self._rng.random() < 0.3:
            return self._rng.choice(self._real).a
        if self._rng.random() < 0.4:
            meaning = self._rng.choice(self._rng.choice(self._sets))
            return self._say(self._rng.choice(meaning.wordings), self._fill())
        return self._rng.choice(self._texts)[0].strip()

    def _rewritten(self) -> Pair | None:
        text = self._source()
        return Pair(text, rewrite(text, self._rng), True, "near_repeat")

    def _edited(self) -> Pair | None:
        text = self._source()
        category = self._rng.choice(list(EDITS))
        edited = self._rng.choice(EDITS[category])(text, self._rng)
        if edited == text:
            return None
        reworded = rewrite(edited, self._rng) if self._rng.random() < 0.4 else edited
        return Pair(text, reworded, False, category)

    def _neighbour(self) -> Pair | None:
        text, intent = self._rng.choice(self._texts)
        words = _words(text)
        near = [self._rng.choice(self._by_word[w]) for w in sorted(words) for _ in range(4)]
        near = [at for at in near if self._texts[at][1] != intent]
        if not near:
            return None
        best = max(near, key=lambda at: len(words & _words(self._texts[at][0])))
        return Pair(text.strip(), self._texts[best][0].strip(), False, "neighbour")

    def _other_topic(self) -> Pair | None:
        return Pair(self._source(), self._source(), False, "other_topic")

    def _known(self) -> Pair | None:
        pair = self._rng.choice(self._real)
        if self._rng.random() < 0.5:
            return pair._replace(a=rewrite(pair.a, self._rng), b=rewrite(pair.b, self._rng))
        return pair


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.lower()))


def _inverted(texts: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for at, (text, _) in enumerate(texts):
        for word in _words(text):
            found.setdefault(word, []).append(at)
    return found
