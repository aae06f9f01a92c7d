"""How long a sidecar's store takes to come back, and what an entry costs in it.

    python -m benchmarks.store_restart --entries 1000000 --folder /var/tmp

Fills a durable store through its own door, closes it, opens it again in a process
of its own (answers: the exact tier can serve; vectors: the semantic tier too), and
looks up by exact key while nothing is waited for. Prints one JSON row.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np

from benchmarks.cpu_time import resident_mb
from cache_svc.durable.opening import open_durable_store
from cache_svc.durable.restore import restore_vectors
from cache_svc.entry import Entry, Key
from cache_svc.faiss_index import FaissIndex
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import Removal

ANSWER_BYTES = 2048
DIMENSION = 384
ENTRIES_A_SCOPE = 100
LOOKUPS = 20_000
MAX_BYTES = 1 << 40
BATCH = 1000


def store_entry(number: int, answer: bytes) -> Entry:
    """Entry of this number, in a scope with a hundred others."""
    exact = blake2b(number.to_bytes(8, "big"), digest_size=32).digest()
    scope = blake2b((number // ENTRIES_A_SCOPE).to_bytes(8, "big"), digest_size=32).digest()
    key = Key("tenant", "", "model", scope, exact, f"a question of some forty letters {number:08}")
    now_s = time.monotonic()
    return Entry(number, key, answer, (), now_s, now_s + 86_400, DIMENSION, 200)


def ignore_removal(_entries: Sequence[Entry], _why: Removal) -> None:
    """Nobody else keeps anything of an entry here."""


async def _fill(folder: Path, entries: int) -> float:
    random_ = np.random.default_rng(3)
    pool = random_.bytes(1 << 20)
    with open_durable_store(
        folder, MAX_BYTES, time.monotonic, ignore_removal, fingerprint="bench"
    ) as opened:
        started = time.perf_counter()
        for start in range(0, entries, BATCH):
            vectors = random_.standard_normal((BATCH, DIMENSION), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for number in range(start, start + BATCH):
                at = number % (len(pool) - ANSWER_BYTES)
                entry = store_entry(number, pool[at : at + ANSWER_BYTES])
                opened.store.put(entry, vectors[number - start])
            await opened.store.settled([])
        return time.perf_counter() - started


async def _reopen(folder: Path, *, with_vectors: bool) -> dict[str, float]:
    before_mb = resident_mb(os.getpid())
    started, started_cpu = time.perf_counter(), time.process_time()
    with (
        open_durable_store(
            folder, MAX_BYTES, time.monotonic, ignore_removal, fingerprint="bench"
        ) as opened,
        ThreadPoolExecutor(1) as executor,
    ):
        row = {"exact_tier_s": time.perf_counter() - started}
        row["exact_tier_cpu_s"] = time.process_time() - started_cpu
        entries = opened.store.usage().entries
        row["bytes_per_entry_without_answer"] = (
            resident_mb(os.getpid()) - before_mb
        ) * 1e6 / entries - ANSWER_BYTES
        row["exact_lookup_us"] = _lookup_us(opened.store.find, entries)
        if with_vectors:
            index = ScopedIndex(
                DIMENSION, lambda _place: FaissIndex(DIMENSION), executor, inline_rows=2048
            )
            started, started_cpu = time.perf_counter(), time.process_time()
            row["vectors"] = await restore_vectors(opened.vectors, opened.store, index)
            row["vectors_s"] = time.perf_counter() - started
            row["vectors_cpu_s"] = time.process_time() - started_cpu
            row["bytes_per_entry_with_vector"] = (
                resident_mb(os.getpid()) - before_mb
            ) * 1e6 / entries - ANSWER_BYTES
        return row


def _lookup_us(find: Callable[[str, bytes], Entry | None], entries: int) -> float:
    seed = random.Random(4)  # noqa: S311 - which keys are asked, no secret
    keys = [store_entry(seed.randrange(entries), b"").key.exact for _ in range(LOOKUPS)]
    started = time.thread_time()
    found = sum(find("tenant", key) is not None for key in keys)
    spent = time.thread_time() - started
    if found != LOOKUPS:
        raise RuntimeError(f"{LOOKUPS - found} answers did not come back")
    return spent / LOOKUPS * 1e6


def main() -> None:
    """Fill here, reopen in a process that has nothing in memory yet."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--entries", type=int, default=100_000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments.add_argument("--no-vectors", action="store_true", help="measure the exact tier only")
    arguments.add_argument("--reopen", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.reopen:
        row = asyncio.run(_reopen(chosen.folder, with_vectors=not chosen.no_vectors))
        print(json.dumps({name: round(value, 2) for name, value in row.items()}))
        return
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        fill_s = asyncio.run(_fill(folder, chosen.entries))
        size = sum(file.stat().st_size for file in folder.iterdir())
        row = {"entries": chosen.entries, "fill_s": round(fill_s, 1)}
        row["disk_bytes_per_entry"] = size // chosen.entries
        command = [sys.executable, "-m", "benchmarks.store_restart", "--reopen"]
        command += ["--folder", str(folder), *(["--no-vectors"] if chosen.no_vectors else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        print(json.dumps({**row, **json.loads(done.stdout)}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
