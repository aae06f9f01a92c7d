"""How far two answers agree."""

import pytest

from benchmarks.optimize import agreement


@pytest.mark.parametrize(
    ("plain", "other", "share"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 1.0),
        ((1, 2, 3, 4), (1, 2, 9, 4), 0.5),
        ((1, 2, 3, 4), (9, 2, 3, 4), 0.0),
        ((1, 2), (1, 2, 3, 4), 0.5),
        ((), (), 0.0),
    ],
)
def test_agreement_is_the_common_beginning(
    plain: tuple[int, ...], other: tuple[int, ...], share: float
) -> None:
    """Only tokens before the first difference count, of the longer answer."""
    assert agreement(plain, other) == share
