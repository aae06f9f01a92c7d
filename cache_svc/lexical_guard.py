"""The first pair verifier: facts that a small embedder overlooks, compared as words."""

import re
from functools import lru_cache
from typing import NamedTuple

from cache_svc.verifier import ACCEPTED, Verdict

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_NEGATIONS = frozenset({"not", "no", "never", "without", "cannot", "nor", "none"})


class _Reading(NamedTuple):
    numbers: tuple[str, ...]
    negated: bool


class LexicalGuard:
    """Rejects pairs whose numbers or negations differ."""

    def __init__(self, kept_readings: int = 1024) -> None:
        self._read = lru_cache(kept_readings)(_read)

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        one, other = self._read(query), self._read(candidate)
        if one.numbers != other.numbers:
            return Verdict(accepted=False, rule="numbers", reason="numbers differ")
        if one.negated != other.negated:
            return Verdict(accepted=False, rule="negation", reason="one is negated")
        return ACCEPTED


def _read(text: str) -> _Reading:
    words = [w.lower().replace("\u2019", "'") for w in _WORD.findall(text)]
    numbers = tuple(sorted(w for w in words if w[0].isdigit()))
    negations = sum(w in _NEGATIONS or w.endswith("n't") for w in words)
    return _Reading(numbers, negations % 2 == 1)
