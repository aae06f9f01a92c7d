"""A restart over one large scope, with and without snapshots of its index.

    python -m benchmarks.index_restart --entries 100000 --vectors FILE.npy

Fills a durable store with one scope of that many entries (vectors of the file, then
displaced copies as in benchmarks/index_scale.py), the index growing as it does in the
service. Then a process that has nothing in memory brings the vectors back: once with the
snapshots, once after they were removed. Told are seconds until every vector can be
found, seconds until no index is being built any more, and the CPU seconds of both.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.index_scale import read_vectors, write_entries
from benchmarks.store_restart import MAX_BYTES, ignore_removal, store_entry
from cache_svc.durable.opening import Opened, open_durable_store
from cache_svc.durable.restore import restore_vectors
from cache_svc.entry import Entry
from cache_svc.growing_index import Builder, GrowingIndex
from cache_svc.open_index import SNAPSHOTS, OpenIndex, open_index
from cache_svc.settings import CacheSettings
from cache_svc.vector_index import Matrix

ANSWER = bytes(256)
PUT_AT_ONCE = 500
POLL_S = 0.02
FINGERPRINT = "benchmark"


def _open(held: ExitStack, folder: Path, dimension: int) -> tuple[Opened, OpenIndex]:
    opened = held.enter_context(
        open_durable_store(
            folder, MAX_BYTES, time.monotonic, ignore_removal, fingerprint=FINGERPRINT
        )
    )
    settings = CacheSettings.model_validate({"store": {"path": folder}})
    indexes = open_index(
        settings,
        held.enter_context(ThreadPoolExecutor(1)),
        held.enter_context(Builder()),
        dimension=dimension,
        fingerprint=FINGERPRINT,
    )
    return opened, indexes


def _entry(number: int, dimension: int) -> Entry:
    """An entry of the one scope."""
    entry = store_entry(number, ANSWER)
    scope = store_entry(0, b"").key.scope
    return replace(entry, key=replace(entry.key, scope=scope), vector_dimension=dimension)


async def _built(indexes: OpenIndex, dimension: int) -> None:
    """Wait until no index is being built."""
    index = indexes.scoped.index_of(_entry(0, dimension).key.place)
    while isinstance(index, GrowingIndex) and index.rebuilding:  # noqa: ASYNC110  a thread's work
        await asyncio.sleep(POLL_S)


async def _fill(folder: Path, vectors: Matrix) -> None:
    dimension = vectors.shape[1]
    with ExitStack() as held:
        opened, indexes = _open(held, folder, dimension)
        for number, vector in enumerate(vectors):
            entry = _entry(number, dimension)
            indexes.scoped.add(entry.key.place, number, np.array(vector))
            opened.store.put(entry, np.array(vector))
            if number % PUT_AT_ONCE == 0:
                await opened.store.settled([])
        await opened.store.settled([])
        await _built(indexes, dimension)


async def _reopen(folder: Path, dimension: int) -> dict[str, float]:
    with ExitStack() as held:
        opened, indexes = _open(held, folder, dimension)
        entries = opened.store.usage().entries
        started, started_cpu = time.perf_counter(), time.process_time()
        returned = await indexes.bring_back(opened.store)
        await restore_vectors(opened.vectors, opened.store, indexes.scoped)
        findable_s = time.perf_counter() - started
        if len(indexes.scoped) != entries:
            raise RuntimeError(f"{len(indexes.scoped)} of {entries} vectors came back")
        await _built(indexes, dimension)
        return {
            "from_snapshot": returned,
            "all_findable_s": findable_s,
            "built_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - started_cpu,
        }


def _in_new_process(folder: Path, dimension: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.index_restart", "--reopen"]
    command += ["--folder", str(folder), "--dimension", str(dimension)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    row: dict[str, float] = json.loads(done.stdout)
    return row


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="base embeddings, .npy")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--dimension", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--reopen", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reopen:
        row = asyncio.run(_reopen(options.folder, options.dimension))
        print(json.dumps({name: round(value, 2) for name, value in row.items()}))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        base = read_vectors(options.vectors)
        vectors = write_entries(base, options.entries, folder).vectors
        store, dimension = folder / "store", base.shape[1]
        asyncio.run(_fill(store, vectors))
        size = sum(file.stat().st_size for file in (store / SNAPSHOTS).rglob("*.faiss"))
        rows = {"with": _in_new_process(store, dimension)}
        shutil.rmtree(store / SNAPSHOTS)
        rows["without"] = _in_new_process(store, dimension)
        print(json.dumps({"entries": options.entries, "snapshot_bytes": size, **rows}, indent=2))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
