"""One large scope on a GPU beside the CPU: how fast, how right, how large.

    python -m benchmarks.gpu_index --entries 1000000 --vectors FILE.npy --json -

Entries and queries are embeddings of real texts brought to size by the displacements
that benchmarks/index_scale.py states. For each kind of index: seconds to build it,
milliseconds of one search for four neighbours and of 32 at once (a CPU index takes
them one after another), the share of queries whose nearest entry is found, and bytes
an entry on the GPU and in the process's own memory. The truth is an exact search.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.index_scale import (
    NEIGHBORS,
    QUERY_COSINES,
    Ids,
    Stored,
    nearest,
    own_bytes,
    read_vectors,
    timed,
    turned,
    write_entries,
)
from benchmarks.real_texts import SHIPPED_TEXTS, embed_texts
from benchmarks.statistics import quantile
from cache_svc.faiss_index import FaissIndex
from cache_svc.gpu.device import Gpu
from cache_svc.ivf_index import IvfIndex
from cache_svc.large_index import GpuKind, on_gpu
from cache_svc.shortlist_index import ShortlistIndex
from cache_svc.vector_index import Matrix, Neighbor
from sidecache.errors import SetupError

BATCH = 32
WARM_UP = 20
GPU_BYTES = 64 << 30
GPU_KINDS: tuple[GpuKind, ...] = ("gpu_flat", "gpu_ivf", "gpu_cagra")
CPU_KINDS = ("flat", "ivf")
Index = FaissIndex | IvfIndex | ShortlistIndex


def build_flat(stored: Stored) -> FaissIndex:
    """Every vector, added one by one as the service does."""
    index = FaissIndex(stored.vectors.shape[1])
    for batch in stored.batches():
        for entry_id, vector in zip(batch.ids.tolist(), batch.vectors, strict=True):
            index.add(entry_id, vector)
    return index


def builder_of(kind: str, gpu: Gpu | None) -> Callable[[Stored], Index]:
    """What builds this kind."""
    if kind == "flat":
        return build_flat
    if kind == "ivf":
        return lambda stored: IvfIndex.build(stored.vectors.shape[1], stored)
    if gpu is None:
        raise ValueError(f"{kind} needs a GPU")
    chosen = next(known for known in GPU_KINDS if known == kind)
    build = on_gpu(chosen, gpu, 0)

    def on_this_gpu(stored: Stored) -> Index:
        return build(stored.vectors.shape[1], stored, lambda: None)

    return on_this_gpu


def search_batch(index: Index, queries: Matrix) -> list[list[Neighbor]]:
    """The neighbours of several queries, at once where the index can."""
    if isinstance(index, ShortlistIndex):
        return index.search_many(queries, NEIGHBORS)
    return [index.search(query, NEIGHBORS) for query in queries]


def latencies_ms(index: Index, batches: Sequence[Matrix]) -> list[float]:
    """Milliseconds of each batch, after some that are not counted."""
    for batch in batches[:WARM_UP]:
        search_batch(index, batch)
    times = []
    for batch in batches:
        started = time.perf_counter()
        search_batch(index, batch)
        times.append(1e3 * (time.perf_counter() - started))
    return times


def gpu_bytes() -> int:
    """Memory of the current GPU that anybody holds; 0 where there is none."""
    try:
        runtime = ctypes.CDLL("libcudart.so.13")
    except OSError:
        return 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return 0
    return total.value - free.value


def measure(
    kind: str, gpu: Gpu | None, stored: Stored, asked: Matrix, truth: Ids
) -> dict[str, Any]:
    """Every figure of one kind of index."""
    before, on_gpu_before = own_bytes(), gpu_bytes()
    build_s, index = timed(partial(builder_of(kind, gpu), stored))
    entries = len(stored)
    row: dict[str, Any] = {
        "kind": kind,
        "built_as": type(index).__name__,
        "entries": entries,
        "build_s": round(build_s, 2),
        "gpu_bytes_per_entry": round((gpu_bytes() - on_gpu_before) / entries),
        "host_bytes_per_entry": round((own_bytes() - before) / entries),
    }
    singles = [asked[i : i + 1] for i in range(len(asked))]
    many = [asked[i : i + BATCH] for i in range(0, len(asked) - BATCH + 1, BATCH)]
    for name, batches in (("lookup", singles), (f"batch_{BATCH}", many)):
        times = latencies_ms(index, batches)
        row[f"{name}_p50_ms"] = round(quantile(times, 0.5), 3)
        row[f"{name}_p99_ms"] = round(quantile(times, 0.99), 3)
    found = [neighbors[0].id for batch in singles for neighbors in search_batch(index, batch)]
    row["recall_at_1"] = round(float(np.mean(np.array(found) == truth)), 4)
    row["effort"] = _effort(index)
    return row


def _effort(index: Index) -> int:
    """Lists searched, or results kept by a walk through a graph; 0: everything is searched."""
    if isinstance(index, IvfIndex):
        return index.lists_searched
    return int(getattr(index.shortlister, "effort", 0)) if isinstance(index, ShortlistIndex) else 0


def run(
    base: Matrix, entries: int, queries: int, flat_queries: int, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each kind; kinds of a GPU that is not there say why."""
    try:
        gpu, why_not = Gpu.open(0, GPU_BYTES, graph=True), ""
    except SetupError as error:
        gpu, why_not = None, error.text
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-index-") as scratch:
        stored = write_entries(base, entries, Path(scratch))
        chosen = np.sort(np.random.default_rng(3).integers(entries, size=queries))
        asked = turned(stored.vectors, chosen, QUERY_COSINES, 4)
        asked = asked[np.random.default_rng(5).permutation(len(asked))]
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        truth = nearest(stored, asked)
        faiss.omp_set_num_threads(1)
        for kind in kinds:
            if kind in GPU_KINDS and gpu is None:
                rows.append({"kind": kind, "not_measured": why_not})
                continue
            # Comparing with every vector on one core takes a third of a second a query.
            few = flat_queries if kind == "flat" else len(asked)
            rows.append(measure(kind, gpu, stored, asked[:few], truth[:few]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--flat-queries", type=int, default=128, help="of them for CPU Flat")
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="base embeddings, .npy")
    parser.add_argument("--kinds", nargs="+", default=[*CPU_KINDS, *GPU_KINDS])
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    if options.vectors:
        base = read_vectors(options.vectors)
    else:
        base = embed_texts([SHIPPED_TEXTS], options.entries)
    rows = run(base, options.entries, options.queries, options.flat_queries, options.kinds)
    text = json.dumps(rows, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
