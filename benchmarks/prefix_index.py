"""The prefix index at size: block events applied a second, and the time of one match.

    python -m benchmarks.prefix_index --blocks 1000000 --workers 64 --json -

Each worker's cache is filled with chains of blocks and then churned, leaves first,
in batches as they come decoded from the wire. Prompts are of ``--prompt-tokens``;
each is held by some of the workers to some depth: by one, by a few, or (the worst
case) wholly by all. Tokenizing is not measured here; naming the blocks is, from
packed ids and from a list of ints. Bytes a block are what the process grew by.
"""

import argparse
import gc
import json
import random
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.statistics import quantile
from cache_svc.prefix_index import PrefixIndex
from sidecache.kv_blocks import BlockHasher, pack_hashes, token_bytes, unpack_hashes

BATCH_BLOCKS = 32
MATCHES = 300
VOCABULARY = 50_000
T = TypeVar("T")


def chains(blocks: int, workers: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Batches of fresh names, packed, to one worker after another."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, no secret
    for start in range(0, blocks, BATCH_BLOCKS):
        count = min(BATCH_BLOCKS, blocks - start)
        names = [chance.getrandbits(64) for _ in range(count)]
        yield f"w{(start // BATCH_BLOCKS) % workers}", pack_hashes(names)


def fill(index: PrefixIndex, blocks: int, workers: int) -> dict[str, float]:
    """Fill the caches, then let a tenth of the blocks come and another tenth go."""
    decoded = [(worker, unpack_hashes(names)) for worker, names in chains(blocks, workers, 1)]
    gc.collect()
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    for worker, names in decoded:
        index.stored(worker, names)
    filled_s = time.process_time() - started
    grown = process.memory_info().rss - before
    oldest: deque[tuple[str, array[int]]] = deque(decoded)
    fresh = [(worker, unpack_hashes(names)) for worker, names in chains(blocks // 10, workers, 2)]
    started = time.process_time()
    churned = 0
    for worker, names in fresh:
        index.stored(worker, names)
        gone_from, gone = oldest.popleft()
        index.removed(gone_from, gone)
        churned += len(names) + len(gone)
    churned_s = time.process_time() - started
    return {
        "fill_events_per_s": round(blocks / filled_s),
        "churn_events_per_s": round(churned / churned_s),
        "events_per_s": round((blocks + churned) / (filled_s + churned_s)),
        "bytes_per_block": round(grown / blocks, 1),
    }


def prompts(
    index: PrefixIndex, workers: int, tokens: int, block_size: int, holders: int, *, whole: bool
) -> list[bytes]:
    """Packed ids of prompts, each held by so many workers."""
    chance = random.Random(holders)  # noqa: S311 - repeatable, no secret
    hasher = BlockHasher(block_size)
    made = []
    for _ in range(1 if whole else 8):
        packed = token_bytes([chance.randrange(VOCABULARY) for _ in range(tokens)])
        names = hasher.hashes_of_packed(packed)
        for worker in chance.sample(range(workers), holders):
            depth = len(names) if whole else chance.randrange(1, len(names) + 1)
            index.stored(f"w{worker}", names[:depth])
        made.append(packed)
    return made


def timed(name: str, work: Callable[[T], object], over: Sequence[T]) -> dict[str, float]:
    """p50 and p99 in milliseconds; and of CPU time, which a busy machine changes less."""
    took, cpu = [], []
    for each in islice(cycle(over), MATCHES):
        started, cpu_started = time.perf_counter(), time.thread_time()
        work(each)
        cpu.append(1e3 * (time.thread_time() - cpu_started))
        took.append(1e3 * (time.perf_counter() - started))
    return {
        f"{name}_p50_ms": round(quantile(took, 0.5), 4),
        f"{name}_p99_ms": round(quantile(took, 0.99), 4),
        f"{name}_cpu_p50_ms": round(quantile(cpu, 0.5), 4),
        f"{name}_cpu_p99_ms": round(quantile(cpu, 0.99), 4),
    }


def measure(blocks: int, workers: int, tokens: int, block_size: int) -> dict[str, float]:
    """All figures."""
    index = PrefixIndex()
    figures = fill(index, blocks, workers)
    hasher = BlockHasher(block_size)
    by_few = prompts(index, workers, tokens, block_size, min(4, workers), whole=False)
    by_all = prompts(index, workers, tokens, block_size, workers, whole=True)
    by_none = prompts(index, workers, tokens, block_size, 0, whole=False)
    ids = [array("I", packed) for packed in by_few]
    few, all_, none = ([hasher.hashes_of_packed(p) for p in ps] for ps in (by_few, by_all, by_none))
    figures |= timed("match", index.match, few)
    figures |= timed("match_held_by_all", index.match, all_)
    figures |= timed("match_held_by_none", index.match, none)
    figures |= timed("hash", hasher.hashes_of_packed, by_few)
    figures |= timed("hash_from_ids", hasher.hashes, [each.tolist() for each in ids])
    figures |= timed("hash_and_match", lambda p: index.match(hasher.hashes_of_packed(p)), by_few)
    figures["hash_ms"] = figures["hash_p50_ms"]
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=100_000)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--json", default="-", help="where to; -: standard output")
    options = parser.parse_args()
    sizes = {
        "blocks": options.blocks,
        "workers": options.workers,
        "prompt_tokens": options.prompt_tokens,
        "block_size": options.block_size,
    }
    figures = measure(*sizes.values())
    text = json.dumps(sizes | figures, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
