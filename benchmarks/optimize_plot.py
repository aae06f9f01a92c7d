"""The plot of :mod:`benchmarks.optimize`: one bar for each setting, one panel a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PANELS = (
    ("tokens/s, 1 stream", "tok_s_1"),
    ("tokens/s, 8 streams", "tok_s_8"),
    ("TTFT p50, ms", "ttft_p50_ms"),
    ("peak memory, MB", "peak_mb"),
    ("tokens as in the plain run", "same_prefix"),
)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the benchmark's results, as its JSON has them.

    The plain run, the first, is darker, and a line carries its figure through each panel.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is wanted

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    rows = list(results)[::-1]
    names = [each["setting"] for each in rows]
    colours = ["#7aa6d1"] * (len(rows) - 1) + ["#1f4e79"]
    figure, axes = pyplot.subplots(
        1, len(_PANELS), figsize=(18, 1.2 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )
    for axis, (title, name) in zip(axes, _PANELS, strict=True):
        values = [each[name] for each in rows]
        bars = axis.barh(names, values, color=colours)
        axis.axvline(values[-1], color="#1f4e79", linewidth=0.8, linestyle=":")
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.set_title(title)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
