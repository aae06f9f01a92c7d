"""How far two answers agree, and the plot."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.optimize import agreement
from benchmarks.optimize_plot import draw


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


def test_the_plot_takes_every_setting(tmp_path: Path) -> None:
    """As many rows as settings, in a PNG that grows with them."""
    row: dict[str, Any] = {"tok_s_1": 9.0, "tok_s_8": 30.0, "ttft_p50_ms": 50.0, "peak_mb": 400.0}
    rows = [row | {"setting": name, "same_prefix": 1.0} for name in ("plain", "other", "third")]
    heights = []
    for count in (2, 3):
        draw(rows[:count], tmp_path / "plot.png")
        header = (tmp_path / "plot.png").read_bytes()
        assert header.startswith(b"\x89PNG")
        heights.append(int.from_bytes(header[20:24]))
    assert heights[0] < heights[1]
