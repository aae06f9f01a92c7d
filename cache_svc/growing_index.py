"""The index of a scope that may become large: flat at first, inverted lists later.

A scope that outgrows a flat search is rebuilt as inverted lists, or on a GPU
(large_index.py), and again once it has grown or shrunk so much that this no longer
fits, always beside the searches: the vectors there are stay where they are, those
that arrive go to a small flat index at the side, and every search looks into both.
When the new index is whole it takes the old one's place, and the side's vectors
move into it.
"""

import heapq
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import Self

from cache_svc.entry import DuplicateId
from cache_svc.faiss_index import FaissIndex
from cache_svc.ivf_index import BuildStopped, IvfIndex
from cache_svc.large_index import BuildLarge, LargeIndex, on_cpu
from cache_svc.shortlist_index import ShortlistIndex
from cache_svc.vector_index import DeviceFailed, Matrix, Neighbor, Vector

_log = logging.getLogger(__name__)

# Vectors moved from the side under one lock, which a change may wait for, and the
# pause between two such locks.
_MOVED_ROWS = 8
_BREATH_S = 0.0005


@dataclass(frozen=True, slots=True)
class RebuildPolicy:
    """When the index of a scope is built anew.

    Attributes:
        flat_rows: beyond so many vectors a scope gets inverted lists; under half of
            it, it is flat again. Two sizes, so that a scope that swings around one
            of them is not rebuilt all the time.
        factor: inverted lists are learnt anew once the scope is so many times as
            large, or as small, as when they were learnt; over 1.
    """

    flat_rows: int = 5000
    factor: float = 2.0

    @property
    def least_inverted(self) -> float:
        """Fewest vectors that are worth inverted lists."""
        return self.flat_rows / 2

    def bounds(self, rows: int, *, inverted: bool) -> tuple[float, float]:
        """Least and most vectors that suit an index made from ``rows`` vectors."""
        if not inverted:
            return 0, self.flat_rows
        return max(rows / self.factor, self.least_inverted), rows * self.factor


class Builder:
    """The one thread that indexes are rebuilt on, shared by all scopes of a sidecar."""

    def __init__(self) -> None:
        # Of the same priority as searches: where cores are scarce, a thread of lower
        # priority is suspended while it holds what searches wait for.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="index-build")
        self._stopping = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the running build within a second or so, and drop those that wait."""
        self._stopping.set()
        self._executor.shutdown(cancel_futures=True)

    def submit(self, build: Callable[[], None]) -> None:
        """Run ``build`` when the thread is free.

        Raises:
            RuntimeError: the builder was closed.
        """
        self._executor.submit(build).add_done_callback(_tell_failure)

    def check_stop(self) -> None:
        """End a build whose process is ending.

        Raises:
            BuildStopped: the builder was closed.
        """
        if self._stopping.is_set():
            raise BuildStopped

    def breathe(self) -> None:
        """Let others have the locks that the build has just given back."""
        self._stopping.wait(_BREATH_S)


class GrowingIndex:
    """A VectorIndex of any size, rebuilt by itself while it is used.

    Args:
        dimension: length of every vector.
        builder: where rebuilds run.
        policy: when they do.
        start: what to start from, say a snapshot; None: empty.
        on_built: given every new index with lists on the CPU before it is used, on the
            builder's thread; say, to save a snapshot. An OSError of it is logged and
            costs nothing.
        build_large: what a scope that outgrew a flat search is built as.
    """

    __slots__ = (
        "_bounds",
        "_build_large",
        "_builder",
        "_changing",
        "_frozen",
        "_heeds_wear",
        "_main",
        "_on_built",
        "_policy",
        "_removed",
        "_side",
        "dimension",
    )

    def __init__(
        self,
        dimension: int,
        builder: Builder,
        policy: RebuildPolicy,
        *,
        start: IvfIndex | None = None,
        on_built: Callable[[IvfIndex], None] | None = None,
        build_large: BuildLarge = on_cpu,
    ) -> None:
        self.dimension = dimension
        self._builder = builder
        self._policy = policy
        self._on_built = on_built
        self._build_large = build_large
        self._changing = Lock()
        self._main: FaissIndex | LargeIndex = FaissIndex(dimension) if start is None else start
        # A rebuild reads the main index: nothing may be added to it until the swap.
        self._frozen = False
        # What arrived meanwhile, and has not moved to the main index yet.
        self._side: FaissIndex | None = None
        # Ids that left the main index meanwhile.
        self._removed: set[int] = set()
        self._bounds = policy.bounds(len(self._main), inverted=start is not None)
        self._heeds_wear = True

    def __len__(self) -> int:
        side = self._side
        return len(self._main) + (0 if side is None else len(side))

    def __contains__(self, entry_id: int) -> bool:
        # The side first: vectors only ever move from there to the main index.
        side = self._side
        return (side is not None and entry_id in side) or entry_id in self._main

    @property
    def main(self) -> FaissIndex | LargeIndex:
        """The index that most vectors are in, or all of them unless :attr:`rebuilding`."""
        return self._main

    @property
    def rebuilding(self) -> bool:
        """Whether a new index waits for its turn, is being built, or is being filled."""
        return self._side is not None

    def add(self, entry_id: int, vector: Vector) -> None:
        with self._changing:
            if entry_id in self:
                raise DuplicateId(f"id {entry_id} is in the index already")
            if self._frozen and self._side is not None:
                self._side.add(entry_id, vector)
            else:
                self._main.add(entry_id, vector)
            self._rebuild_if_due()

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        side = self._side
        # The side first: what moves into the main index meanwhile is then seen
        # twice, and not never.
        aside = [] if side is None else side.search(vector, k)
        found = self._search_main(vector, k)
        if not aside:
            return found
        both = dict([*found, *aside])
        return heapq.nlargest(k, map(Neighbor._make, both.items()), key=lambda n: n.similarity)

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._changing:
            removed = 0 if self._side is None else self._side.remove(entry_ids)
            if self._frozen:
                self._removed.update(i for i in entry_ids if i in self._main)
            removed += self._main.remove(entry_ids)
            self._rebuild_if_due()
            return removed

    def _search_main(self, vector: Vector, k: int) -> list[Neighbor]:
        try:
            return self._main.search(vector, k)
        except DeviceFailed:
            # Nothing may ever change here again: the next build must not wait for that.
            with self._changing:
                self._rebuild_if_due()
            raise

    def _rebuild_if_due(self) -> None:
        if self._side is not None or not self._is_due():
            return
        self._side, self._frozen = FaissIndex(self.dimension), True
        try:
            self._builder.submit(self._rebuild)
        except RuntimeError:  # the process is ending; what there is serves on
            self._side, self._frozen = None, False

    def _is_due(self) -> bool:
        least, most = self._bounds
        main = self._main
        worn = self._heeds_wear and isinstance(main, ShortlistIndex) and main.worn
        return len(main) > 0 and (worn or not least <= len(main) <= most)

    def _rebuild(self) -> None:
        """On the builder's thread: build, swap, and move the side's vectors over."""
        try:
            built = self._built()
        except BuildStopped:
            return
        except Exception as error:  # noqa: BLE001  # say, no memory: the old index serves on
            _log.warning("an index of %d vectors was not rebuilt: %r", len(self), error)
            self._heeds_wear = False  # else it would be tried with every change
            self._swap(self._main, self._bounds_after_failure())
        else:
            self._heeds_wear = True
            inverted = not isinstance(built, FaissIndex)
            self._swap(built, self._policy.bounds(len(built), inverted=inverted))
        self._absorb_side()

    def _built(self) -> FaissIndex | LargeIndex:
        main = self._main
        if len(main) >= self._policy.least_inverted:
            large = self._build_large(self.dimension, main, self._builder.check_stop)
            if isinstance(large, IvfIndex):
                self._tell(large)
            return large
        flat = FaissIndex(self.dimension)
        for batch in main.batches():
            self._builder.check_stop()
            for entry_id, vector in zip(batch.ids.tolist(), batch.vectors, strict=True):
                flat.add(entry_id, vector)
        return flat

    def _tell(self, built: IvfIndex) -> None:
        if self._on_built is None:
            return
        try:
            self._on_built(built)
        except OSError as error:
            _log.warning("a new index of %d vectors was not saved: %s", len(built), error)

    def _bounds_after_failure(self) -> tuple[float, float]:
        """Another try only once the scope has changed by another factor."""
        rows = len(self)
        return rows / self._policy.factor, rows * self._policy.factor

    def _swap(self, built: FaissIndex | LargeIndex, bounds: tuple[float, float]) -> None:
        with self._changing:
            built.remove(self._removed)
            self._removed = set()
            self._main, self._bounds, self._frozen = built, bounds, False

    def _absorb_side(self) -> None:
        """Move the side into the main index, a few vectors a lock, and drop it."""
        side = self._side
        if side is None:
            return
        for ids, vectors in side.batches():
            for start in range(0, len(ids), _MOVED_ROWS):
                part = slice(start, start + _MOVED_ROWS)
                with self._changing:
                    self._move(side, ids[part].tolist(), vectors[part])
                self._builder.breathe()
        with self._changing:
            self._side = None  # what arrived since the swap went to the main index

    def _move(self, side: FaissIndex, ids: list[int], vectors: Matrix) -> None:
        for entry_id, vector in zip(ids, vectors, strict=True):
            if entry_id in side:  # else it was removed since the batch was copied
                self._main.add(entry_id, vector)
        side.remove(ids)


def _tell_failure(build: Future[None]) -> None:
    """A defect of ours must not end in silence; the index serves on, side and all."""
    if not build.cancelled() and (error := build.exception()) is not None:
        _log.error("a rebuild ended in an unexpected way", exc_info=error)
