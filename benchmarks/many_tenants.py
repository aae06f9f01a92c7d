"""Many small scopes: what an entry costs in memory, and an addition and a search in time.

    python -m benchmarks.many_tenants --tenants 10000 --entries 100 --json -

Vectors are random, since a flat search costs the same for any. Bytes an entry are
what the process's own memory grew by, ids and all bookkeeping of the index
counted, the answers not.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.statistics import quantile
from cache_svc.entry import Place
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.scoped_index import ScopedIndex
from cache_svc.vector_index import Matrix

DIMENSION = 384
INLINE_ROWS = 2048
NEIGHBORS = 4
SEARCHES = 5000


def unit_vectors(random: np.random.Generator, count: int) -> Matrix:
    """Random unit vectors, shape (count, 384)."""
    vectors = random.standard_normal((count, DIMENSION), dtype=np.float32)
    unit: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


async def measure(tenants: int, entries: int) -> dict[str, Any]:
    """Every figure; times are medians and 99th percentiles of single calls."""
    random = np.random.default_rng(0)
    places = [Place(f"tenant-{n}", random.bytes(32)) for n in range(tenants)]
    added = np.ones((entries, tenants))  # ones, so that its memory is there already
    process = psutil.Process()
    gc.collect()
    before = process.memory_info()
    with Builder() as builder, ThreadPoolExecutor(1) as executor:
        policy = RebuildPolicy()
        index = ScopedIndex(
            DIMENSION,
            lambda _place: GrowingIndex(DIMENSION, builder, policy),
            executor,
            inline_rows=INLINE_ROWS,
        )
        # Tenants take turns, as they do in life.
        for turn in range(entries):
            vectors = unit_vectors(random, tenants)
            ids = random.integers(2**62, size=tenants).tolist()
            for tenant, place in enumerate(places):
                started = time.perf_counter()
                index.add(place, ids[tenant], vectors[tenant])
                added[turn, tenant] = time.perf_counter() - started
        del vectors, ids
        gc.collect()
        after = process.memory_info()
        searched = []
        for vector in unit_vectors(random, SEARCHES):
            place = places[int(random.integers(tenants))]
            started = time.perf_counter()
            await index.search(place, vector, NEIGHBORS)
            searched.append(time.perf_counter() - started)
    grown = (after.rss - after.shared) - (before.rss - before.shared)
    return {
        "tenants": tenants,
        "entries_each": entries,
        "bytes_per_entry": grown / (tenants * entries),
        "add_p50_us": 1e6 * float(np.quantile(added, 0.5)),
        "add_p99_us": 1e6 * float(np.quantile(added, 0.99)),
        "search_p50_us": 1e6 * quantile(searched, 0.5),
        "search_p99_us": 1e6 * quantile(searched, 0.99),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--entries", type=int, default=100, help="entries of each tenant")
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    text = json.dumps(asyncio.run(measure(options.tenants, options.entries)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
