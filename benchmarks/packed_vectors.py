"""What 16 bits a number cost: does the nearest entry stay the nearest?

    python -m benchmarks.packed_vectors --texts FILE.jsonl[.gz] … --json -

Embeds real texts, keeps them in scopes of several sizes as small and as medium scopes
do (a packed matrix; FAISS in half precision), and asks for each of a thousand queries
displaced from them (as benchmarks/index_scale.py does) whether the nearest is the one
that an exact search in float32 names. Also the largest error of a cosine.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_scale import QUERY_COSINES, turned
from benchmarks.real_texts import SHIPPED_TEXTS, embed_texts
from cache_svc.faiss_index import FaissIndex
from cache_svc.plain_index import PlainIndex
from cache_svc.vector_index import Matrix

SIZES = (128, 2048, 8192)
QUERIES = 1000


def measure(base: Matrix, rows: int, seed: int) -> dict[str, Any]:
    """Agreement on the nearest, and the largest error, in one scope of so many rows."""
    random = np.random.default_rng(seed)
    held = base[random.permutation(len(base))[:rows]]
    index = (PlainIndex if rows <= SIZES[0] else FaissIndex)(held.shape[1])
    for entry_id, vector in enumerate(held):
        index.add(entry_id, vector)
    asked = turned(held, random.integers(len(held), size=QUERIES), QUERY_COSINES, seed)
    agreed, error = 0, 0.0
    for query in asked:
        exact = held @ query
        (found,) = index.search(query, 1)
        # Equal texts have equal vectors: either of them is the nearest.
        agreed += bool(exact[found.id] >= exact.max() - 1e-6)
        error = max(error, abs(float(exact[found.id]) - found.similarity))
    return {
        "rows": len(held),
        "kind": type(index).__name__,
        "queries": QUERIES,
        "agreement": agreed / QUERIES,
        "largest_error": error,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+", default=[SHIPPED_TEXTS])
    parser.add_argument("--base", type=int, default=8192, help="texts embedded")
    parser.add_argument("--json", default="-", help="where the rows go; -: standard output")
    options = parser.parse_args()
    base = embed_texts(options.texts, options.base)
    rows = [measure(base, size, seed) for size in SIZES if size <= len(base) for seed in range(4)]
    text = json.dumps(rows, indent=1)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
