"""The methods compared: who answers from the cache, and what each learns from misses.

A method sees one request after the other and says which stored request's answer
it serves, or None. Only where it says None is it told what the request really
asked for: a label costs a miss.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cache_svc.faiss_index import FaissIndex
from cache_svc.vector_index import Matrix

Ids = npt.NDArray[np.int64]


class Trace(NamedTuple):
    """One run: for each request the request whose answer was served (-1: none), and its time.

    ``lookup_s`` holds the measured ones only: all of ours, a sample of a baseline's.
    """

    served: Ids
    lookup_s: list[float]


class World(NamedTuple):
    """A stream in one order.

    Attributes:
        senses: what each request asks for; read only where a label was paid for.
        neighbors: for each request, the others by falling similarity, shape (n, m).
    """

    texts: Sequence[str]
    senses: Sequence[int]
    vectors: Matrix
    neighbors: Ids
    similarities: npt.NDArray[np.float32]


class Method(Protocol):
    """A cache that serves or misses."""

    def run(self, world: World) -> Trace:
        """Go through the requests in their order, starting with an empty cache."""
        ...


def in_order(world: World, order: Ids) -> World:
    """The same stream in another order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return World(
        [world.texts[i] for i in order],
        [world.senses[i] for i in order],
        world.vectors[order],
        place[world.neighbors[order]],
        world.similarities[order],
    )


def make_world(texts: Sequence[str], senses: Sequence[int], vectors: Matrix, m: int) -> World:
    """Find every request's nearest others once; no method sees those of its future."""
    n = len(texts)
    m = min(m, n - 1)
    neighbors = np.empty((n, m), np.int64)
    similarities = np.empty((n, m), np.float32)
    for start in range(0, n, 1000):
        rows = np.arange(start, min(start + 1000, n))
        cosines = vectors[rows] @ vectors.T
        cosines[np.arange(len(rows)), rows] = -2  # a request is no neighbour of its own
        near = np.argpartition(-cosines, m - 1, axis=1)[:, :m]
        found = np.take_along_axis(cosines, near, axis=1)
        by_similarity = np.argsort(-found, axis=1, kind="stable")
        neighbors[rows] = np.take_along_axis(near, by_similarity, axis=1)
        similarities[rows] = np.take_along_axis(found, by_similarity, axis=1)
    return World(texts, senses, vectors, neighbors, similarities)


class NearestOnly:
    """What the baselines share: the single nearest stored request, and a rule about it.

    Their neighbours are read from the world's table instead of an index, which
    changes no decision; a sample of real searches gives the time of a lookup.

    Args:
        serves: whether the request serves its nearest; from ids and similarity.
        learn: told of each miss with a neighbour: the neighbour, the similarity, whether
            its answer would have been right. Returns whether the request is stored.
    """

    def __init__(
        self,
        serves: Callable[[int, float], bool],
        learn: Callable[[int, float, bool], bool],
    ) -> None:
        self._serves = serves
        self._learn = learn

    def run(self, world: World) -> Trace:
        n = len(world.texts)
        stored = np.zeros(n, bool)
        served = np.full(n, -1, np.int64)
        decided_s: list[float] = []
        for i in range(n):
            at = int(stored[world.neighbors[i]].argmax()) if i else 0
            nearest = int(world.neighbors[i, at])
            if not stored[nearest]:
                stored[i] = True  # nothing stored is near enough to be in the table
                continue
            similarity = float(world.similarities[i, at])
            started = time.perf_counter()
            serves = self._serves(nearest, similarity)
            decided_s.append(time.perf_counter() - started)
            if serves:
                served[i] = nearest
            else:
                right = world.senses[i] == world.senses[nearest]
                stored[i] = self._learn(nearest, similarity, right)
        searched_s = time_searches(world, np.flatnonzero(stored))
        chosen = np.random.default_rng(0).choice(decided_s or [0.0], len(searched_s))
        return Trace(served, [a + float(b) for a, b in zip(searched_s, chosen, strict=True)])


def time_searches(world: World, stored: Ids, samples: int = 200) -> list[float]:
    """Seconds of real searches for the nearest one, in an index of all that was stored."""
    index = FaissIndex(world.vectors.shape[1])
    for i in stored:
        if world.vectors[i].any():
            index.add(int(i), world.vectors[i])
    seconds = []
    for i in range(0, len(world.texts), max(1, len(world.texts) // samples)):
        if world.vectors[i].any():
            started = time.perf_counter()
            index.search(world.vectors[i], 1)
            seconds.append(time.perf_counter() - started)
    return seconds


def static(threshold: float) -> NearestOnly:
    """One threshold for everything; what missed is stored."""
    return NearestOnly(lambda _, similarity: similarity >= threshold, lambda *_: True)


def gptcache() -> NearestOnly:
    """GPTCache's documented similar-cache default.

    Reproduced of it: nearest of one, FAISS IndexFlatL2 (whose distances are squared),
    SearchDistanceEvaluation(max_distance=4, positive=False), whose score is 4 minus
    the distance, and Config.similarity_threshold = 0.8 of the score's range: a hit is a
    squared distance of at most 0.8, which on unit vectors is a cosine of at least 0.6.
    Not reproduced: its own embedder; all methods here share one.
    """
    max_distance, threshold = 4.0, 0.8

    def serves(_: int, similarity: float) -> bool:
        distance = min(max(2.0 - 2.0 * similarity, 0.0), max_distance)
        return max_distance - distance >= max_distance * threshold

    return NearestOnly(serves, lambda *_: True)
