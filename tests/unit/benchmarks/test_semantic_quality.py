"""What the semantic quality benchmark counts."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from benchmarks.semantic.methods import in_order, make_world, static
from benchmarks.semantic.ours import Sidecache
from benchmarks.semantic.vcache import vcache
from benchmarks.semantic_quality import wilson, within_bound
from cache_svc.settings import SemanticSettings
from cache_svc.verifier import ACCEPTED, Look, Verdict
from tests.fixtures.cache import HashEmbedder

TEXTS = [f"{family}:{member}" for member in range(40) for family in "abcde"]
SENSES = ["abcde".index(text[0]) for text in TEXTS]


class AcceptAll:
    def screen(self, query: str, candidate: str, similarity: float) -> Verdict | None:
        return ACCEPTED

    def screen_each(self, query: str, candidates: Sequence[Look]) -> Iterator[Verdict | None]:
        return (ACCEPTED for _ in candidates)

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        return ACCEPTED


def test_a_threshold_serves_the_nearest_of_the_stored() -> None:
    """A static threshold serves all but the first of each family, and nothing from the future."""
    world = make_world(TEXTS, SENSES, HashEmbedder().embed(TEXTS), 64)
    served = static(0.8).run(world).served
    assert (served[:5] == -1).all()
    assert all(TEXTS[j][0] == TEXTS[i][0] and j < i for i, j in enumerate(served) if j >= 0)
    assert (served >= 0).sum() == len(TEXTS) - 5


def test_another_order_is_the_same_stream() -> None:
    """Neighbours and vectors follow their requests into another order."""
    world = make_world(TEXTS, SENSES, HashEmbedder().embed(TEXTS), 8)
    shuffled = in_order(world, np.random.default_rng(1).permutation(len(TEXTS)))
    for i in range(len(TEXTS)):
        cosines = shuffled.vectors[shuffled.neighbors[i]] @ shuffled.vectors[i]
        assert np.allclose(cosines, shuffled.similarities[i], atol=1e-6)


@pytest.mark.parametrize("ours", [True, False])
def test_unpaid_labels_change_nothing(ours: bool) -> None:
    """The labels of requests that were served are never seen by the method that served them."""
    vectors = HashEmbedder().embed(TEXTS)

    def run(senses: list[int]) -> list[int]:
        world = make_world(TEXTS, senses, vectors, 64)
        method = Sidecache(AcceptAll(), SemanticSettings(), 0.05, 1) if ours else vcache(0.05, 1)
        served: list[int] = method.run(world).served.tolist()
        return served

    served = run(SENSES)
    assert any(j >= 0 for j in served)
    lied = [-i - 1 if served[i] >= 0 else sense for i, sense in enumerate(SENSES)]
    assert run(lied) == served


def test_tolerance_is_binomial() -> None:
    """20 and 27 of 1,000 are within 2 %, 31 are not; nothing served breaks no bound."""
    assert within_bound(20, 1000, 0.02)
    assert within_bound(27, 1000, 0.02)
    assert not within_bound(31, 1000, 0.02)
    assert within_bound(0, 0, 0.02)


def test_wilson_interval() -> None:
    """10 of 100 is 5.5 % to 17.4 %."""
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-3)
