"""The strict view of a hit: facts of the two prompts, whatever the labels say.

Intent labels are coarse: "a top-up of 10 dollars" and "a top-up of 50 dollars"
are one intent. A strict reader minds the difference. It uses the guard's
readers, on every pair served, by whichever method.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cache_svc
from cache_svc.guard.exchange import difference, names_differ
from cache_svc.guard.order import order_differs
from cache_svc.guard.quantities import figures_differ
from cache_svc.lexical_guard import Reading, read

_VOCABULARY = Path(cache_svc.__file__).parent / "minilm" / "tokenizer.json"


def fact_reader() -> Callable[[str, str], bool]:
    """A function that says whether two prompts differ in a fact: number, name, direction."""
    pieces = json.loads(_VOCABULARY.read_bytes())["model"]["vocab"]
    known = frozenset(piece for piece in pieces if piece.isalpha())
    reading: Callable[[str], Reading] = lru_cache(50_000)(read)

    def differ(a: str, b: str) -> bool:
        one, other = reading(a), reading(b)
        return bool(
            figures_differ(one.figures, other.figures)
            or order_differs(one.order, other.order)
            or one.literals != other.literals
            or names_differ(difference(one.content, other.content, known))
        )

    return differ
