"""Whether a prompt is negated: by the number of its negations, not their mere presence."""

from collections.abc import Sequence
from itertools import pairwise

from cache_svc.guard.words import Word, listed

_NEGATIONS = listed("""not no never without nor neither none nothing nobody nowhere hardly barely
    unless except excluding avoid refuse forbid prohibit prohibited ban banned prevent lack non
    ne pas jamais nicht kein keine nie ohne nunca sans senza nao não niet geen ikke inte""")
# Two words that say no more than a pause: "whether or not", "why not", "not only".
_IDLE = frozenset(
    {("or", "not"), ("why", "not"), ("not", "only"), ("no", "matter"), ("no", "problem")}
)


def is_negated(words: Sequence[Word]) -> bool:
    """Whether the prompt holds an odd number of negations; two undo each other."""
    texts = [word.text for word in words]
    if _NEGATIONS.isdisjoint(texts):
        return False
    count = sum(text in _NEGATIONS for text in texts)
    idle = sum(pair in _IDLE for pair in pairwise(texts))
    return (count - idle) % 2 == 1
