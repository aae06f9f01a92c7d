"""Our semantic lookup as the sidecar composes it, timed whole and part by part."""

import hashlib
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple

from cache_svc.departures import Departures
from cache_svc.entry import Entry, Key, Place, new_entry_id
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.lookup import MAX_JUDGED
from cache_svc.scoped_index import ScopedIndex
from cache_svc.settings import SemanticSettings
from cache_svc.stats import Stats
from cache_svc.store import MemoryStore
from cache_svc.vector_index import Matrix, Neighbor, Vector
from cache_svc.verifier import Look, PairVerifier
from observability.settings import MIB

_BUILD_LIMIT_S = 120.0
_LIFE_S = 1e9


class Timed(NamedTuple):
    """One lookup: how it ended, and what it took, all in seconds.

    ``end`` is "below floor", "rejected by screen", "rejected by model", "verified by
    rules" or "verified by model". ``verify_*`` is all that comes after the index.
    """

    end: str
    index_s: float
    index_cpu_s: float
    verify_s: float
    verify_cpu_s: float


class OurLookup:
    """One scope of one tenant: store, index and verifier of the sidecar, on one thread.

    The bound's gate is left out: its table costs some microseconds, and while it
    explores, a verified candidate is no hit.
    """

    def __init__(
        self,
        store: MemoryStore,
        index: ScopedIndex,
        verifier: PairVerifier,
        settings: SemanticSettings,
    ) -> None:
        self._store = store
        self._index = index
        self._verifier = verifier
        self._settings = settings

    def fill(self, texts: Sequence[str], vectors: Matrix, *, read: bool) -> None:
        """Store an answer to each text.

        ``read``: each was asked before, so that the verifier has read it, and has kept
        what it keeps. Not so after a restart.
        """
        for text, vector in zip(texts, vectors, strict=True):
            if read:
                list(self._verifier.screen_each(text, [Look(text[:-1], 1.0)]))
            key = _key(text)
            answer = f"answer to {text}".encode()
            now = time.monotonic()
            entry = Entry(new_entry_id(), key, answer, (), now, now + _LIFE_S, len(vector), 32)
            self._store.put(entry, vector)
            self._index.add(key.place, entry.id, vector)

    def lookup(self, text: str, vector: Vector) -> Timed:
        """Find and verify, as the lookup path does, with a clock between its parts."""
        company = self._settings.bound.company
        started, cpu = time.perf_counter(), time.thread_time()
        neighbors = _at_once(self._index.search(_key("").place, vector, company))
        found, found_cpu = time.perf_counter(), time.thread_time()
        end = "below floor"
        may_judge, used_model = MAX_JUDGED, False
        looks = []
        for entry_id, similarity in neighbors[: self._settings.neighbors]:
            entry = self._store.get("tenant", entry_id)
            if entry is not None and similarity >= self._settings.min_similarity:
                looks.append(Look(entry.key.text, similarity))
        for look, screened in zip(looks, self._verifier.screen_each(text, looks), strict=True):
            verdict = screened
            by_model = verdict is None
            if verdict is None and may_judge:
                may_judge -= 1
                used_model = True
                verdict = self._verifier.verify(text, *look)
            if verdict is not None and verdict.accepted:
                end = "verified by model" if by_model else "verified by rules"
                break
            end = "rejected by model" if used_model else "rejected by screen"
        over, over_cpu = time.perf_counter(), time.thread_time()
        return Timed(end, found - started, found_cpu - cpu, over - found, over_cpu - found_cpu)


@contextmanager
def open_lookup(texts: Sequence[str], vectors: Matrix, *, read: bool) -> Iterator[OurLookup]:
    """Our lookup over so many entries, its large index built; ``read`` as for OurLookup.fill."""
    settings = SemanticSettings()
    with ThreadPoolExecutor(1) as executor, Builder() as builder:
        policy = RebuildPolicy(settings.flat_rows, settings.rebuild_factor)
        grown: list[GrowingIndex] = []

        def new_index(_place: Place) -> GrowingIndex:
            grown.append(GrowingIndex(vectors.shape[1], builder, policy))
            return grown[-1]

        rows = len(texts)  # searched inline, so that all of it is on one thread
        index = ScopedIndex(vectors.shape[1], new_index, executor, inline_rows=rows)
        departures = Departures(index, Stats())
        store = MemoryStore(1024 * MIB, time.monotonic, departures)
        ours = OurLookup(store, index, LearnedVerifier(), settings)
        ours.fill(texts, vectors, read=read)
        _await_build(builder, grown)
        yield ours


def _at_once(search: Coroutine[Any, Any, list[Neighbor]]) -> list[Neighbor]:
    """What a coroutine returns that waits for nothing: the sidecar opens no loop for it."""
    try:
        search.send(None)
    except StopIteration as done:
        found: list[Neighbor] = done.value
        return found
    search.close()
    raise RuntimeError("the search went to another thread")


def _await_build(builder: Builder, indexes: Sequence[GrowingIndex]) -> None:
    """Return when the builder's one thread has come past every build there is."""
    past = Event()
    builder.submit(past.set)
    if not past.wait(_BUILD_LIMIT_S) or any(index.rebuilding for index in indexes):
        raise TimeoutError(f"the index was not built within {_BUILD_LIMIT_S:g} s")


def _key(text: str) -> Key:
    exact = hashlib.sha256(text.encode()).digest()
    return Key("tenant", "", "model", b"s" * 32, exact, text)
