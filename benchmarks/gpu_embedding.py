"""Embedding on a GPU beside the CPU: milliseconds for one text and for 32.

    python -m benchmarks.gpu_embedding --model FOLDER --json -

Runs the sidecar's own embedders: a sentence-transformers model on cpu and cuda, and the
default ONNX model on one thread. Texts are real questions, none of them twice in a row;
a text is checked by can_embed first, as in the service. Also told: the least cosine between
the vectors of both devices, and whether their fingerprints are equal.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_texts import SHIPPED_TEXTS, read_texts
from benchmarks.statistics import quantile
from cache_svc.embedder import Embedder
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.embedders.sentence_transformers import SentenceTransformersEmbedder
from cache_svc.vector_index import Matrix
from sidecache import weights
from sidecache.errors import SetupError

BATCHES = (1, 32)
WARM_UP = 5


def latencies_ms(embedder: Embedder, texts: Sequence[str], batch: int, rounds: int) -> list[float]:
    """Milliseconds of each run of so many texts, the check of each counted."""
    times = []
    for round_ in range(WARM_UP + rounds):
        start = round_ * batch % (len(texts) - batch)
        chosen = texts[start : start + batch]
        started = time.perf_counter()
        if not all(map(embedder.can_embed, chosen)):
            raise ValueError("a text is beyond what the embedder sees")
        embedder.embed(chosen)
        times.append(1e3 * (time.perf_counter() - started))
    return times[WARM_UP:]


def measure(name: str, embedder: Embedder, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """The figures of one embedder."""
    row: dict[str, Any] = {"embedder": name}
    for batch in BATCHES:
        times = latencies_ms(embedder, texts, batch, max(20, rounds // batch))
        row[f"batch_{batch}_p50_ms"] = round(quantile(times, 0.5), 2)
        row[f"batch_{batch}_p99_ms"] = round(quantile(times, 0.99), 2)
    return row


def embedders(model: Path | None, onnx: Path | None) -> dict[str, Callable[[], Embedder]]:
    """What is measured, made when it is its turn."""
    made: dict[str, Callable[[], Embedder]] = {
        "onnx int8, 1 thread": lambda: OnnxEmbedder(onnx or weights.locate("minilm-l6-v2-int8"))
    }
    if model is not None:
        folder = model
        made["sentence-transformers, cpu"] = lambda: SentenceTransformersEmbedder(folder)
        made["sentence-transformers, cuda"] = lambda: SentenceTransformersEmbedder(
            folder, device="cuda"
        )
    return made


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a sentence-transformers model")
    parser.add_argument("--onnx", type=Path, help="the ONNX model; unset: the one pulled")
    parser.add_argument("--texts", type=Path, nargs="+", default=[SHIPPED_TEXTS])
    parser.add_argument("--rounds", type=int, default=1000, help="texts of each measurement")
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    texts = read_texts(options.texts)
    rows: list[dict[str, Any]] = []
    vectors: dict[str, Matrix] = {}
    fingerprints: dict[str, str] = {}
    for name, make in embedders(options.model, options.onnx).items():
        try:
            embedder = make()
        except SetupError as error:
            rows.append({"embedder": name, "not_measured": error.text})
            continue
        rows.append(measure(name, embedder, texts, options.rounds))
        vectors[name] = np.concatenate([embedder.embed([text]) for text in texts[:200]])
        fingerprints[name] = embedder.fingerprint
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    rows.append(_compared(vectors, fingerprints))
    text = json.dumps(rows, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


def _compared(vectors: dict[str, Matrix], fingerprints: dict[str, str]) -> dict[str, Any]:
    """Whether the two devices agree; nothing where only one was measured."""
    devices = [name for name in vectors if name.startswith("sentence-transformers")]
    if len(devices) < len(BATCHES):
        return {"cpu_and_cuda": "not compared"}
    one, other = devices
    cosines = (vectors[one] * vectors[other]).sum(axis=1)
    return {
        "cpu_and_cuda_least_cosine": float(cosines.min()),
        "same_fingerprint": fingerprints[one] == fingerprints[other],
    }


if __name__ == "__main__":
    main()
