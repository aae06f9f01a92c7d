"""What each eviction policy saves of a stream of requests, in a store of a given size.

    python -m benchmarks.eviction --trace mooncake_conversation.jsonl.gz

Streams: ``blocks`` takes each prefix block of a serving trace as a request of its
own, which has the popularity, the bursts and the age of real traffic; ``zipf``
repeats the questions of a file by Zipf's law, with churn. Answers have the lengths
that the trace saw. The figure is the share of generated tokens that
hits saved; size is what :class:`cache_svc.entry.Entry` says an entry takes.
"""

import argparse
import gzip
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.sieve import Sieve
from cache_svc.gdsf import Gdsf, Item

# An entry beside its answer: bookkeeping, keys, a prompt, a vector of 384 dimensions.
ENTRY_BYTES = 3000
# Bytes of a stored token: its id, its text, and its share of its delta.
TOKEN_BYTES = 9
SHARES = (0.01, 0.05, 0.2)


class Request(NamedTuple):
    """What is asked, and how long the answer to it is."""

    key: int
    tokens: int

    @property
    def size(self) -> int:
        """Bytes that its entry takes."""
        return ENTRY_BYTES + TOKEN_BYTES * self.tokens


class Policy(Protocol):
    """An eviction queue."""

    def add(self, entry_id: int, worth: float) -> None: ...

    def touch(self, entry_id: int) -> None: ...

    def remove(self, entry_id: int) -> None: ...

    def victim(self) -> int: ...


class Lru:
    """Least recently used: the policy to beat."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, entry_id: int, worth: float) -> None:
        self._order[entry_id] = None

    def touch(self, entry_id: int) -> None:
        self._order.move_to_end(entry_id)

    def remove(self, entry_id: int) -> None:
        del self._order[entry_id]

    def victim(self) -> int:
        return next(iter(self._order))


class PlainSieve(Sieve):
    """SIEVE, which knows neither size nor cost."""

    def add(self, entry_id: int, worth: float = 0.0) -> None:
        super().add(entry_id)


class GdsfById:
    """The store's own queue, asked by id."""

    def __init__(self) -> None:
        self._queue: Gdsf[Item] = Gdsf()
        self._ids: dict[int, int] = {}
        self._items: dict[int, Item] = {}

    def add(self, entry_id: int, worth: float) -> None:
        # Ids come again after an eviction, arrivals only rise.
        item = self._items[entry_id] = Item(len(self._ids), worth)
        self._ids[item.arrival] = entry_id
        self._queue.add(item)

    def touch(self, entry_id: int) -> None:
        self._queue.touch(self._items[entry_id])

    def remove(self, entry_id: int) -> None:
        self._queue.remove(self._items.pop(entry_id))

    def victim(self) -> int:
        return self._ids[self._queue.victim().arrival]

    def restart(self, *, keep_hits: bool) -> None:
        """As a store that comes back from disk: with hits and priorities, or with neither."""
        queue: Gdsf[Item] = Gdsf()
        for entry_id, old in list(self._items.items()):
            item = self._items[entry_id] = Item(old.arrival, old.worth)
            if keep_hits:
                item.hits, item.priority = old.hits, old.priority
                queue.bring_back(item)
            else:
                queue.add(item)
        queue.resume()
        self._queue = queue


class FlatGdsf(GdsfById):
    """GDSF with one worth for all: frequency and age alone."""

    def add(self, entry_id: int, worth: float) -> None:
        super().add(entry_id, 1.0)


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": Lru,
    "sieve": PlainSieve,
    "gdsf, worth 1": FlatGdsf,
    "gdsf": GdsfById,
}


def tokens_saved(
    requests: Iterable[Request], policy: Policy, max_bytes: int, kept: dict[int, int] | None = None
) -> tuple[int, int]:
    """Run a stream through one store; returns tokens saved and tokens asked for.

    ``kept``: what the store holds, by key and size; changed.
    """
    kept = {} if kept is None else kept
    used = sum(kept.values())
    saved = asked = 0
    for request in requests:
        asked += request.tokens
        if request.key in kept:
            saved += request.tokens
            policy.touch(request.key)
            continue
        while used + request.size > max_bytes and kept:
            victim = policy.victim()
            policy.remove(victim)
            used -= kept.pop(victim)
        if request.size <= max_bytes:
            policy.add(request.key, max(1, request.tokens) / request.size)
            kept[request.key] = request.size
            used += request.size
    return saved, asked


def measure_restart(name: str, requests: list[Request]) -> Iterator[dict[str, object]]:
    """What the half of a stream after a restart saves, with and without the hits of before."""
    half = len(requests) // 2
    distinct = {request.key: request.size for request in requests}
    for share in SHARES:
        max_bytes = int(sum(distinct.values()) * share)
        for how in ("lru", "gdsf, no restart", "gdsf, hits kept", "gdsf, hits lost"):
            policy = Lru() if how == "lru" else GdsfById()
            kept: dict[int, int] = {}
            tokens_saved(requests[:half], policy, max_bytes, kept)
            if isinstance(policy, GdsfById) and "no restart" not in how:
                policy.restart(keep_hits="kept" in how)
            saved, asked = tokens_saved(requests[half:], policy, max_bytes, kept)
            row: dict[str, object] = {"stream": name, "store_share": share, "after_restart": how}
            yield {**row, "tokens_saved": round(saved / asked, 4)}


def _lines(path: Path) -> Iterator[dict[str, object]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            yield json.loads(line)


def _lengths(trace: Path) -> list[int]:
    return [int(str(row["output_length"])) for row in _lines(trace)]


def zipf_stream(questions: Path, trace: Path, count: int, exponent: float) -> list[Request]:
    """Questions by Zipf's law; every thousand requests, a tenth of them change ranks."""
    seed = random.Random(5)  # noqa: S311 - the same stream every time
    lengths = _lengths(trace)
    keys = [key for key, _ in enumerate(_lines(questions))]
    answers = [seed.choice(lengths) for _ in keys]
    weights = [1 / rank**exponent for rank in range(1, len(keys) + 1)]
    requests = []
    for _ in range(count // 1000):
        asked = seed.choices(keys, weights, k=1000)
        requests += [Request(key, answers[key]) for key in asked]
        for _ in range(len(keys) // 20):
            one, other = seed.randrange(len(keys)), seed.randrange(len(keys))
            keys[one], keys[other] = keys[other], keys[one]
    return requests


def block_stream(trace: Path) -> list[Request]:
    """Each prefix block of a trace as a request, with the length of its first answer."""
    lengths: dict[int, int] = {}
    requests = []
    for row in _lines(trace):
        blocks = row["hash_ids"]
        assert isinstance(blocks, list)  # noqa: S101 - the trace's own format
        for block in blocks:
            length = lengths.setdefault(block, int(str(row["output_length"])))
            requests.append(Request(block, length))
    return requests


def measure(name: str, requests: list[Request]) -> Iterator[dict[str, object]]:
    """One row for each policy and size of the store."""
    distinct = {request.key: request.size for request in requests}
    for share in SHARES:
        max_bytes = int(sum(distinct.values()) * share)
        for policy, new in POLICIES.items():
            saved, asked = tokens_saved(requests, new(), max_bytes)
            yield {
                "stream": name,
                "requests": len(requests),
                "distinct": len(distinct),
                "store_share": share,
                "policy": policy,
                "tokens_saved": round(saved / asked, 4),
            }


def main() -> None:
    """Run every stream that files were named for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trace", type=Path, required=True, help="requests with output_length")
    arguments.add_argument("--questions", type=Path, help="one question a line")
    arguments.add_argument("--requests", type=int, default=100_000)
    arguments.add_argument("--restart", action="store_true", help="what a restart costs, instead")
    chosen = arguments.parse_args()
    streams = {"blocks": block_stream(chosen.trace)}
    if chosen.questions is not None:
        for exponent in (0.7, 1.0):
            stream = zipf_stream(chosen.questions, chosen.trace, chosen.requests, exponent)
            streams[f"zipf {exponent}"] = stream
    for name, requests in streams.items():
        rows = measure_restart if chosen.restart else measure
        for row in rows(name, requests):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
