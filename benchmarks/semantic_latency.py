"""How long a semantic lookup takes among so many entries, in parts and beside other caches.

    python -m benchmarks.semantic_latency --entries 10000 --texts FILE [FILE] \
        [--peer-python PATH] [--redis HOST:PORT] --json -

Entries are real texts. Queries are other texts of the same files, as many repeats of
entries with courtesies around them, and as many joined from two texts, which are near
nothing. Each query goes to all contestants in turn before the next one, in one process
each and on one thread each; the embedding is given (its own time is a row). The floor is
what no cache can do without: an exact FAISS search for one neighbour and a dictionary.

A peer runs in an environment of its own: PATH is its Python, with gptcache and
qdrant-edge-py, whichever are there, and redis for --redis (an empty server with search).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from benchmarks.latency.ours import OurLookup, open_lookup
from benchmarks.real_texts import SHIPPED_TEXTS, joined, read_texts
from benchmarks.semantic.data import Embeddings
from benchmarks.statistics import quantile
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.vector_index import Matrix
from sidecache import weights

_PEER = Path(__file__).parent / "latency" / "peer.py"
_COURTESIES = ("Hi, {}", "{} Thanks!", "Hello, {} Please help.", "please, {}", "{} thank you")
_FLOOR_SIMILARITY = 0.8
_MAX_CHARACTERS = 400
# What a rejected lookup may take beyond its search.
_REJECTED_S = 1e-3


class Sample(NamedTuple):
    """One contestant's answer to one query: wall and CPU seconds."""

    wall_s: float
    cpu_s: float


Samples = dict[str, list[Sample]]


class Workload(NamedTuple):
    """What is stored and what is asked; vectors by row."""

    texts: list[str]
    vectors: Matrix
    queries: list[str]
    query_vectors: Matrix


def make_workload(files: Sequence[Path], entries: int, queries: int, kept: Path | None) -> Workload:
    """Choose entries and queries, the same ones every time."""
    chooser = random.Random(0)  # noqa: S311  # a choice that can be repeated, no secret
    embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
    third = queries // 3
    texts = [text for text in read_texts(files) if len(text) <= _MAX_CHARACTERS]
    chooser.shuffle(texts)
    others, texts = texts[:third], texts[third:]
    stored = joined(texts, entries)
    repeats = [chooser.choice(_COURTESIES).format(text) for text in chooser.sample(stored, third)]
    pairs = [" ".join(chooser.sample(others, 2)) for _ in range(third)]
    asked = [*others, *repeats, *pairs]
    chooser.shuffle(asked)
    embeddings = Embeddings(embedder, kept)
    both = embeddings.of([*stored, *asked])
    return Workload(stored, both[: len(stored)], asked, both[len(stored) :])


def floor_of(work: Workload) -> Callable[[int], str]:
    """An exact search for the nearest vector and a dictionary of answers."""
    index = faiss.IndexFlatIP(work.vectors.shape[1])
    index.add(work.vectors)
    answers = {i: f"answer to {text}" for i, text in enumerate(work.texts)}

    def find(row: int) -> str:
        scores, ids = index.search(work.query_vectors[row : row + 1], 1)
        near = scores[0, 0] >= _FLOOR_SIMILARITY
        return "hit" if near and answers[int(ids[0, 0])] else "miss"

    return find


@contextmanager
def open_peer(
    python: Path, name: str, folder: Path, address: str
) -> Iterator[Callable[[int], tuple[Sample, str]]]:
    """A peer's process, loaded; the function asks it one query.

    Raises:
        RuntimeError: it did not start; what it said stands on standard error.
    """
    command = [str(python), str(_PEER), name, str(folder), address]
    with subprocess.Popen(  # noqa: S603  # the caller's own Python, named on the command line
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        if process.stdin is None or process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"{name} did not start in {python}")
        asked, answers = process.stdin, process.stdout

        def find(row: int) -> tuple[Sample, str]:
            print(row, file=asked, flush=True)
            wall_s, cpu_s, hit = json.loads(answers.readline())
            return Sample(wall_s, cpu_s), "hit" if hit else "miss"

        try:
            yield find
        finally:
            asked.close()


def measure(
    work: Workload, ours: OurLookup, peers: dict[str, Callable[[int], tuple[Sample, str]]]
) -> Samples:
    """Every contestant answers every query; the first tenth is warm-up and not counted."""
    floor = floor_of(work)
    embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
    samples: Samples = defaultdict(list)
    warm = len(work.queries) // 10
    for row, (text, vector) in enumerate(zip(work.queries, work.query_vectors, strict=True)):
        found: dict[str, Sample] = {}
        started, cpu = time.perf_counter(), time.thread_time()
        embedder.embed([text])
        found["embedding"] = _since(started, cpu)
        started, cpu = time.perf_counter(), time.thread_time()
        outcome = floor(row)
        found[f"floor: {outcome}"] = _since(started, cpu)
        timed = ours.lookup(text, vector)
        found["sidecache: index part"] = Sample(timed.index_s, timed.index_cpu_s)
        found[f"sidecache: {timed.end}, beyond the index"] = Sample(
            timed.verify_s, timed.verify_cpu_s
        )
        if timed.end.startswith("rejected"):
            found["sidecache: any rejected, beyond the index"] = Sample(
                timed.verify_s, timed.verify_cpu_s
            )
        elif timed.end.startswith("verified"):
            found["sidecache: any verified, beyond the index"] = Sample(
                timed.verify_s, timed.verify_cpu_s
            )
        whole = "hit" if timed.end.startswith("verified") else "miss"
        found[f"sidecache: whole {whole}"] = Sample(
            timed.index_s + timed.verify_s, timed.index_cpu_s + timed.verify_cpu_s
        )
        for name, find in peers.items():
            sample, outcome = find(row)
            found[f"{name}: {outcome}"] = sample
        if row >= warm:
            for name, sample in found.items():
                samples[name].append(sample)
    return samples


def _since(started_s: float, cpu_s: float) -> Sample:
    return Sample(time.perf_counter() - started_s, time.thread_time() - cpu_s)


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """A row for each contestant and part."""
    return [
        {
            "what": name,
            "count": len(found),
            "p50_ms": round(1e3 * quantile([s.wall_s for s in found], 0.5), 4),
            "p99_ms": round(1e3 * quantile([s.wall_s for s in found], 0.99), 4),
            "cpu_p50_ms": round(1e3 * quantile([s.cpu_s for s in found], 0.5), 4),
            "cpu_p99_ms": round(1e3 * quantile([s.cpu_s for s in found], 0.99), 4),
            "within_1_ms_cpu": round(sum(s.cpu_s <= _REJECTED_S for s in found) / len(found), 3),
        }
        for name, found in sorted(samples.items())
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=900)
    parser.add_argument("--texts", type=Path, nargs="+", default=[SHIPPED_TEXTS])
    parser.add_argument("--peer-python", type=Path, help="Python of the peers' environment")
    parser.add_argument("--peers", default="gptcache,qdrant-edge", help="which of them")
    parser.add_argument("--redis", default="", help="an empty Redis with search, HOST:PORT")
    parser.add_argument(
        "--unread", action="store_true", help="no stored prompt was asked since the start"
    )
    parser.add_argument("--embeddings-cache", type=Path, help="a file that keeps vectors (.npz)")
    parser.add_argument("--json", help="where the rows go; -: standard output")
    asked = parser.parse_args(arguments)
    faiss.omp_set_num_threads(1)
    work = make_workload(asked.texts, asked.entries, asked.queries, asked.embeddings_cache)
    names = [n for n in asked.peers.split(",") if n] if asked.peer_python else []
    names += ["redis"] if asked.redis and asked.peer_python else []
    with ExitStack() as stack:
        ours = stack.enter_context(open_lookup(work.texts, work.vectors, read=not asked.unread))
        peers = {}
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            np.save(folder / "vectors.npy", work.vectors)
            np.save(folder / "queries.npy", work.query_vectors)
            (folder / "texts.json").write_text(json.dumps(work.texts), encoding="utf-8")
            peers[name] = stack.enter_context(
                open_peer(asked.peer_python, name, folder, asked.redis)
            )
        rows = rows_of(measure(work, ours, peers))
    for row in rows:
        _tell(
            "{what:52} {count:5}  p50 {p50_ms:8.3f}  p99 {p99_ms:8.3f} ms"
            "  CPU p50 {cpu_p50_ms:8.3f}  p99 {cpu_p99_ms:8.3f} ms".format(**row)
        )
    if asked.json == "-":
        print(json.dumps(rows))
    elif asked.json:
        Path(asked.json).write_text(json.dumps(rows), encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
