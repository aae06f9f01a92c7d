"""Who gets which variant: by weight, the same for the same key, on every router.

Weighted rendezvous hashing (Schindelhauer and Schomaker 2005, the logarithmic method): a
change of one weight moves only the keys that it has to.
"""

import math
from collections.abc import Mapping
from hashlib import blake2b

_PERSON = b"sidecache-split"
_UNIT = 2.0**-64


def pick(split: str, key: bytes, weights: Mapping[str, float]) -> str:
    """The label that this key gets; one of weight 0 never.

    Args:
        split: its name, so that two splits choose independently.
        key: whose choice stays the same.
        weights: by label; at least one above 0.
    """
    return max(
        (label for label, weight in weights.items() if weight > 0),
        key=lambda label: (-weights[label] / math.log(_uniform(split, key, label)), label),
    )


def _uniform(split: str, key: bytes, label: str) -> float:
    """A number in (0, 1) that follows from all three."""
    digest = blake2b(key, digest_size=8, person=_PERSON)
    for part in (split.encode(), label.encode()):
        digest.update(len(part).to_bytes(4, "big") + part)
    return (int.from_bytes(digest.digest(), "big") + 0.5) * _UNIT
