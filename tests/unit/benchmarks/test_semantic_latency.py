"""The semantic latency benchmark: what it compares, and that peers answer in their own process."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency.ours import open_lookup
from benchmarks.real_texts import SHIPPED_TEXTS
from benchmarks.semantic_latency import make_workload, measure, open_peer, rows_of


@pytest.mark.usefixtures("minilm_path")
def test_every_part_gets_a_row() -> None:
    """Repeats are verified by rules, and each query stands once under each contestant."""
    work = make_workload([SHIPPED_TEXTS], entries=200, queries=30, kept=None)
    assert not set(work.queries) & set(work.texts)
    with open_lookup(work.texts, work.vectors, read=True) as ours:
        rows = {row["what"]: row for row in rows_of(measure(work, ours, {}))}
    counted = 30 - 3  # the first tenth warms up
    assert rows["sidecache: index part"]["count"] == counted
    assert rows["embedding"]["count"] == counted
    assert sum(rows[f"floor: {end}"]["count"] for end in ("hit", "miss")) == counted
    assert rows["sidecache: verified by rules, beyond the index"]["count"] >= 5
    assert rows["sidecache: whole hit"]["p50_ms"] > 0


def test_a_peer_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    """An environment without the peer is said at once, not measured as zero."""
    np.save(tmp_path / "vectors.npy", np.eye(4, dtype=np.float32))
    np.save(tmp_path / "queries.npy", np.eye(4, dtype=np.float32))
    (tmp_path / "texts.json").write_text('["a", "b", "c", "d"]')
    with (
        pytest.raises(RuntimeError, match="gptcache did not start"),
        open_peer(Path(sys.executable), "gptcache", tmp_path, ""),
    ):
        pass
