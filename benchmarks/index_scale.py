"""Lookups in one scope of a million entries: how fast, how right, how large.

    python -m benchmarks.index_scale --entries 1000000 --vectors FILE.npy --json -
    python -m benchmarks.index_scale --texts FILE.jsonl[.gz] ... --save FILE.npy --json -

Starts from embeddings of real texts, each entry as it is or displaced:

- entries: the base embeddings; then copies of random ones, turned away from their
  original to a cosine drawn evenly from 0.70 to 0.97, half of them in a random
  direction (which no list can foresee) and half towards another base embedding;
- queries: displaced in the same two ways from random entries, to a cosine drawn
  evenly from 0.85 to 0.97, where paraphrases lie. None of them is an entry.

The truth is an exact search of all entries. Latency is one search for four
neighbours, one caller, one thread, without the embedding. Bytes an entry are what
the process's own memory grew by; ids are random 63-bit numbers, as the store's are.
"""

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.real_texts import SHIPPED_TEXTS, embed_texts
from benchmarks.statistics import quantile
from cache_svc.index_snapshot import Origin, load, save
from cache_svc.ivf_index import IvfIndex, displaced
from cache_svc.vector_index import Batch, Matrix, Neighbor

NEIGHBORS = 4
ENTRY_COSINES = (0.70, 0.97)
QUERY_COSINES = (0.85, 0.97)
BLOCK_ROWS = 20_000
Ids = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored:
    """Vectors on disk, as a store would hand them out: read a block at a time."""

    ids: Ids
    vectors: Matrix

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self) -> Iterator[Batch]:
        for start in range(0, len(self), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            yield Batch(self.ids[block], np.array(self.vectors[block]))


def turned(
    base: Matrix, rows: npt.NDArray[np.intp], cosines: tuple[float, float], seed: int
) -> Matrix:
    """These rows of the base, displaced as the module's text says, shape (len(rows), dim)."""
    random = np.random.default_rng(seed)
    directions = random.standard_normal((len(rows), base.shape[1]), dtype=np.float32)
    half = len(rows) // 2
    directions[:half] = base[random.integers(len(base), size=half)]
    chosen = random.uniform(*cosines, size=(len(rows), 1)).astype(np.float32)
    return displaced(base[rows], directions, chosen)


def write_entries(base: Matrix, entries: int, folder: Path) -> Stored:
    """All entries in a file that is mapped, not loaded."""
    random = np.random.default_rng(1)
    shape = (entries, base.shape[1])
    vectors = np.lib.format.open_memmap(folder / "entries.npy", "w+", np.float32, shape)
    vectors[: len(base)] = base[:entries]
    for start in range(min(len(base), entries), entries, BLOCK_ROWS):
        count = min(BLOCK_ROWS, entries - start)
        rows = random.integers(len(base), size=count)
        vectors[start : start + count] = turned(base, rows, ENTRY_COSINES, start)
    vectors.flush()
    return Stored(_ids(entries), vectors)


def _ids(count: int) -> Ids:
    """Distinct random ids of 62 bits."""
    random = np.random.default_rng(2)
    ids = np.unique(random.integers(2**62, size=count + 100))[:count]
    random.shuffle(ids)
    return ids


def nearest(stored: Stored, queries: Matrix) -> Ids:
    """The id of each query's true nearest entry."""
    best = np.full(len(queries), -2.0, np.float32)
    found = np.full(len(queries), -1, np.int64)
    for batch in stored.batches():
        scores, rows = faiss.knn(queries, batch.vectors, 1, metric=faiss.METRIC_INNER_PRODUCT)
        nearer = scores[:, 0] > best
        best[nearer] = scores[nearer, 0]
        found[nearer] = batch.ids[rows[nearer, 0]]
    return found


def timed_searches(index: IvfIndex, queries: Matrix) -> tuple[list[float], list[Neighbor]]:
    """Milliseconds and the first neighbour of each search."""
    for query in queries[:50]:
        index.search(query, NEIGHBORS)
    times, first = [], []
    for query in queries:
        started = time.perf_counter()
        found = index.search(query, NEIGHBORS)
        times.append(1e3 * (time.perf_counter() - started))
        first.append(found[0])
    return times, first


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that the work took, and what came of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def own_bytes() -> int:
    """Memory of the process that no file backs."""
    gc.collect()
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def measure(base: Matrix, entries: int, queries: int) -> dict[str, Any]:
    """Every figure; the keys without a unit are counts or shares."""
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="index-scale-") as scratch:
        stored = write_entries(base, entries, Path(scratch))
        rows = np.random.default_rng(3).integers(entries, size=queries)
        asked = turned(stored.vectors, np.sort(rows), QUERY_COSINES, 4)
        truth = nearest(stored, asked)
        before = own_bytes()
        build_s, index = timed(partial(IvfIndex.build, base.shape[1], stored))
        grown = own_bytes() - before
        times, first = timed_searches(index, asked)
        found = np.array([neighbor.id for neighbor in first])
        snapshot = Path(scratch) / "snapshot"
        origin = Origin("benchmark", 0, "scope", base.shape[1])
        save_s, _ = timed(partial(save, index, snapshot, origin))
        searched = index.lists_searched
        del index
        restart_s, loaded = timed(partial(load, snapshot, origin))
        if loaded is None or len(loaded) != entries:
            raise RuntimeError("the snapshot did not load")
        again = [neighbor.id for neighbor in timed_searches(loaded, asked)[1]]
        if again != found.tolist():
            raise RuntimeError("the loaded index does not find what the saved one did")
        snapshot_bytes = (snapshot / "index.faiss").stat().st_size
    return {
        "entries": entries,
        "lookup_p50_ms": quantile(times, 0.5),
        "lookup_p99_ms": quantile(times, 0.99),
        "recall_at_1": float(np.mean(found == truth)),
        "bytes_per_entry": grown / entries,
        "build_s": build_s,
        "restart_s": restart_s,
        "restart_from_raw_vectors_s": build_s,
        "snapshot_save_s": save_s,
        "snapshot_bytes_per_entry": snapshot_bytes / entries,
        "lists_searched": searched,
        "base_embeddings": len(base),
        "queries": queries,
        "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def read_vectors(path: Path) -> Matrix:
    """Base embeddings from a .npy file, scaled to unit norm.

    Raises:
        ValueError: it is no matrix of finite numbers without zero rows.
    """
    vectors = np.load(path, allow_pickle=False).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if vectors.ndim != 2 or not len(vectors) or not np.all((norms > 0) & np.isfinite(norms)):  # noqa: PLR2004
        raise ValueError(f"{path} is no matrix of non-zero, finite vectors: {vectors.shape}")
    unit: Matrix = vectors / norms
    return unit


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="base embeddings, .npy")
    parser.add_argument(
        "--texts", type=Path, nargs="+", metavar="FILE", help="embed these instead, .jsonl[.gz]"
    )
    parser.add_argument(
        "--base", type=int, default=100_000, help="prompts made of --texts (ten minutes' work)"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the embeddings, .npy")
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    if options.vectors:
        base = read_vectors(options.vectors)
    else:
        base = embed_texts(options.texts or [SHIPPED_TEXTS], min(options.base, options.entries))
        if options.save:
            np.save(options.save, base)
    text = json.dumps(measure(base, options.entries, options.queries), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
