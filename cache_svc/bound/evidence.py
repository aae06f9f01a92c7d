"""What speaks for and against serving a verified candidate, sorted into bands.

A small embedder's similarity alone says little: at 0.90 one answer in forty is
wrong. Whether the answers stored *around* the candidate agree with it says much
more, and costs nothing: every stored answer was generated for its own prompt.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

# Lower edges of the bands of similarity, and of agreement among the neighbours.
SIMILARITY_EDGES = (0.80, 0.85, 0.90, 0.95)
AGREEMENT_EDGES = (0.60, 0.80, 0.90, 0.97)
# A neighbour this much farther than the candidate has 1/e of its weight.
_REACH = 0.05
# With less weight than this beside it, a candidate stands alone.
_MIN_COMPANY = 0.2
_AGREEMENTS = len(AGREEMENT_EDGES) + 2
BANDS = (len(SIMILARITY_EDGES) + 1) * _AGREEMENTS


class Neighbour(NamedTuple):
    """A stored answer near the query.

    Attributes:
        similarity: cosine to the query.
        sense: what its answer says: equal for answers judged the same; None:
            never judged.
    """

    similarity: float
    sense: int | None


class Evidence(NamedTuple):
    """What is known of a candidate before its answer is compared with a fresh one.

    Attributes:
        similarity: cosine of candidate and query.
        agreement: share of the neighbours' weight whose answers say what the
            candidate's says, in [0, 1]; None: it has no company.
    """

    similarity: float
    agreement: float | None

    @property
    def band(self) -> int:
        """Which pool this evidence belongs to, in [0, BANDS)."""
        row = bisect_right(SIMILARITY_EDGES, self.similarity)
        column = 0
        if self.agreement is not None:
            column = 1 + bisect_right(AGREEMENT_EDGES, self.agreement)
        return row * _AGREEMENTS + column

    def __str__(self) -> str:
        company = "alone" if self.agreement is None else f"agreement {self.agreement:.2f}"
        return f"similarity {self.similarity:.3f}, {company}"


def weigh(candidate: Neighbour, others: Iterable[Neighbour]) -> Evidence:
    """The evidence for a candidate among the query's other neighbours.

    Neighbours whose answers were never judged have no voice; a candidate whose
    own was not stands alone.
    """
    if candidate.sense is None:
        return Evidence(candidate.similarity, None)
    agreeing = company = 0.0
    for similarity, sense in others:
        if sense is not None:
            # Nearer than the candidate (the verifier refused it) still counts once.
            weight = math.exp(min(0.0, similarity - candidate.similarity) / _REACH)
            company += weight
            agreeing += weight if sense == candidate.sense else 0.0
    if company < _MIN_COMPANY:
        return Evidence(candidate.similarity, None)
    return Evidence(candidate.similarity, (1.0 + agreeing) / (1.0 + company))
