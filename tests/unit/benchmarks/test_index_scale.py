"""The benchmark of large scopes measures what it says it does."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.index_scale import (
    ENTRY_COSINES,
    measure,
    nearest,
    read_vectors,
    turned,
    write_entries,
)
from benchmarks.real_texts import joined, read_texts
from tests.unit.cache_svc.test_growing_index import clustered


def test_every_promised_figure_is_there_and_true() -> None:
    """A small run gives the stated keys, finds its neighbours and restarts."""
    result = measure(clustered(500), entries=4000, queries=100)
    promised = {
        "entries",
        "lookup_p50_ms",
        "lookup_p99_ms",
        "recall_at_1",
        "bytes_per_entry",
        "build_s",
        "restart_s",
    }
    assert promised <= result.keys()
    assert result["entries"] == 4000
    assert 0.97 <= result["recall_at_1"] <= 1
    assert 0 < result["lookup_p50_ms"] <= result["lookup_p99_ms"]
    assert json.loads(json.dumps(result)) == result


def test_entries_start_with_the_base_and_are_displaced_as_stated(tmp_path: Path) -> None:
    """The first entries are the embeddings themselves; copies lie at the stated cosines."""
    base = clustered(300)
    stored = write_entries(base, 1000, tmp_path)
    assert np.array_equal(stored.vectors[:300], base)
    assert len(np.unique(stored.ids)) == 1000
    rows = np.arange(300)
    cosines = np.sum(turned(base, rows, ENTRY_COSINES, 1) * base, axis=1)
    assert ENTRY_COSINES[0] - 1e-4 <= cosines.min() < 0.75
    assert 0.92 < cosines.max() <= ENTRY_COSINES[1] + 1e-4


def test_truth_is_an_exact_search(tmp_path: Path) -> None:
    """What recall is measured against is the nearest of all entries."""
    stored = write_entries(clustered(200), 700, tmp_path)
    queries = clustered(30, seed=9)
    best = np.argmax(queries @ np.array(stored.vectors).T, axis=1)
    assert nearest(stored, queries).tolist() == stored.ids[best].tolist()


def test_vectors_that_are_none_are_refused(tmp_path: Path) -> None:
    """A file of NaN, zeros or another shape is named, and nothing is unpickled."""
    path = tmp_path / "vectors.npy"
    for bad in (np.full((3, 4), np.nan), np.zeros((3, 4)), np.ones(4), np.ones((0, 4))):
        np.save(path, bad)
        with pytest.raises(ValueError, match=r"vectors\.npy"):
            read_vectors(path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_vectors(path)
    np.save(path, 3 * clustered(5))
    assert np.linalg.norm(read_vectors(path), axis=1) == pytest.approx(1)


def test_texts_are_read_from_every_kind_of_row(tmp_path: Path) -> None:
    """Questions, pairs and turns are read, plain and packed, each text once."""
    plain, packed = tmp_path / "plain.jsonl", tmp_path / "packed.jsonl.gz"
    plain.write_text('{"text": "one"}\n{"turns": ["two", "three"], "text": " "}\n')
    with gzip.open(packed, "wt") as file:
        file.write('{"a": "four", "b": "one", "same_answer": false}\n')
    assert read_texts([plain, packed]) == ["one", "two", "three", "four"]


def test_prompts_are_joined_until_there_are_enough() -> None:
    """Joined prompts are distinct and short; too few texts say so and do not loop."""
    texts = [f"question number {n}" for n in range(20)]
    prompts = joined(texts, 300)
    assert len(set(prompts)) == 300
    assert prompts[:20] == texts
    assert joined(texts, 5) == texts[:5]
    with pytest.raises(ValueError, match="3 texts join"):
        joined(texts[:3], 100)
