"""Other caches in an environment of their own: one lookup a line, timed where it runs.

    PEER_PYTHON benchmarks/latency/peer.py gptcache|qdrant-edge|redis FOLDER [HOST:PORT]

Imports nothing of this project, so that the environment needs only the peer. FOLDER
holds vectors.npy, queries.npy and texts.json. A line on standard input is the row of a
query; the line back is [seconds, CPU seconds of this process, whether it hit]. What
a peer's own server spends is not in the CPU time.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Of all peers but GPTCache, whose default it is to be content with less.
_FLOOR = 0.8
Find = Callable[[int], bool]


def _gptcache(folder: Path, vectors: Any, queries: Any, texts: list[str], _: str) -> Find:
    """GPTCache with SQLite and FAISS, its documented similar-cache default."""
    from gptcache import Cache
    from gptcache.adapter.api import get
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation import SearchDistanceEvaluation

    manager = get_data_manager(
        CacheBase("sqlite", sql_url=f"sqlite:///{folder}/gptcache.db"),
        VectorBase("faiss", dimension=vectors.shape[1], index_path=str(folder / "faiss.index")),
    )
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda prompt, **_: queries[int(prompt)],
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(),
    )
    answers = [f"answer to {text}" for text in texts]
    for at in range(0, len(texts), 1000):
        part = slice(at, at + 1000)
        size = len(texts[part])
        manager.import_data(texts[part], answers[part], list(vectors[part]), [None] * size)
    return lambda row: get(str(row), cache_obj=cache) is not None


def _qdrant_edge(folder: Path, vectors: Any, queries: Any, texts: list[str], _: str) -> Find:
    """Qdrant's embedded shard, exact or HNSW as its defaults decide."""
    import qdrant_edge as q

    (folder / "edge").mkdir()
    config = q.EdgeConfig(q.EdgeVectorParams(vectors.shape[1], q.Distance.Cosine))
    shard = q.EdgeShard.create(str(folder / "edge"), config)
    for at in range(0, len(texts), 1000):
        points = [
            q.Point(i, vectors[i].tolist(), {"answer": f"answer to {texts[i]}"})
            for i in range(at, min(at + 1000, len(texts)))
        ]
        shard.update(q.UpdateOperation.upsert_points(points))
    shard.optimize()

    def find(row: int) -> bool:
        request = q.QueryRequest(1, query=q.Query.Nearest(queries[row].tolist()), with_payload=True)
        found = shard.query(request)
        return bool(found) and found[0].score >= _FLOOR

    return find


def _redis(_: Path, vectors: Any, queries: Any, texts: list[str], address: str) -> Find:
    """Redis with its search module, a flat index, as RedisVL's semantic cache uses it."""
    import redis

    host, port = address.rsplit(":", 1)
    client = redis.Redis(host, int(port), protocol=2)
    if client.dbsize():
        raise SystemExit(f"the Redis at {address} holds data; give one that is empty")
    client.execute_command(
        "FT.CREATE", "cache", "PREFIX", 1, "entry:", "SCHEMA", "answer", "TEXT", "NOINDEX",
        "v", "VECTOR", "FLAT", 6, "TYPE", "FLOAT32", "DIM", vectors.shape[1],
        "DISTANCE_METRIC", "COSINE",
    )  # fmt: skip
    with client.pipeline(transaction=False) as pipe:
        for i, text in enumerate(texts):
            pipe.hset(
                f"entry:{i}", mapping={"answer": f"answer to {text}", "v": vectors[i].tobytes()}
            )
        pipe.execute()

    def find(row: int) -> bool:
        reply = client.execute_command(
            "FT.SEARCH", "cache", "*=>[KNN 1 @v $q AS d]", "PARAMS", 2, "q",
            queries[row].tobytes(), "RETURN", 2, "answer", "d", "DIALECT", 2,
        )  # fmt: skip
        fields = reply[2] if len(reply) > 2 else []  # noqa: PLR2004  # count, key, fields
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        return b"d" in found and 1 - float(found[b"d"]) >= _FLOOR

    return find


def main() -> None:
    """Load the peer, say so, then answer line by line."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    address = sys.argv[3] if len(sys.argv) > 3 else ""  # noqa: PLR2004  # optional
    # What a peer prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    makers = {"gptcache": _gptcache, "qdrant-edge": _qdrant_edge, "redis": _redis}
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    texts = json.loads((folder / "texts.json").read_text())
    find = makers[name](folder, vectors, queries, texts, address)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        hit = find(int(line))
        spent = [time.perf_counter() - started, time.process_time() - cpu, hit]
        print(json.dumps(spent), file=answers, flush=True)


if __name__ == "__main__":
    main()
