"""One vector index for each scope of each tenant: similarity never leaves a scope.

Neighbours are found by asking the one index that belongs to the caller's tenant
and scope. There is no filter that could be forgotten and no shared object that
two tenants' vectors could meet in.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager

from cache_svc.entry import Place
from cache_svc.packed_vector import Packed, unpack
from cache_svc.plain_index import PlainIndex
from cache_svc.vector_index import Neighbor, Vector, VectorIndex

# Up to so many vectors a matrix is smaller and quicker than FAISS.
PLAIN_ROWS = 128


class ScopedIndex:
    """The indexes of all scopes. Changed from the event loop only.

    Args:
        dimension: length of every vector.
        new_index: makes an empty index for a scope that outgrew a plain matrix.
        executor: runs searches too long for the event loop.
        inline_rows: up to so many vectors a search runs on the event loop, where
            it costs less than handing it to a thread would.
        on_emptied: told of every large scope that lost its last vector.
    """

    def __init__(
        self,
        dimension: int,
        new_index: Callable[[Place], VectorIndex],
        executor: Executor,
        *,
        inline_rows: int,
        on_emptied: Callable[[Place], None] | None = None,
    ) -> None:
        self._dimension = dimension
        self._new_index = new_index
        self._executor = executor
        self._inline_rows = inline_rows
        self._on_emptied = on_emptied
        self._departed: dict[Place, list[int]] | None = None
        self._indexes: dict[Place, VectorIndex] = {}
        self._vectors = 0

    def __len__(self) -> int:
        """Vectors in all scopes together."""
        return self._vectors

    @property
    def scopes(self) -> int:
        """Scopes that hold at least one vector."""
        return len(self._indexes)

    def index_of(self, place: Place) -> VectorIndex | None:
        """The index of one scope; None where it has no vectors."""
        return self._indexes.get(place)

    def contains(self, place: Place, entry_id: int) -> bool:
        """Whether this entry can be found by similarity in this place."""
        index = self._indexes.get(place)
        return index is not None and entry_id in index

    def add(self, place: Place, entry_id: int, vector: Vector) -> None:
        """Make a vector findable inside its place; raises as VectorIndex.add does."""
        index = self._indexes.get(place)
        if index is None:
            index = PlainIndex(self._dimension)
        elif isinstance(index, PlainIndex) and len(index) >= PLAIN_ROWS:
            index = self._grown(place, index)
        index.add(entry_id, vector)
        self._indexes[place] = index
        self._vectors += 1

    def add_packed(self, place: Place, entry_ids: Sequence[int], packed: Packed) -> None:
        """Make stored vectors findable, many at once; raises as PlainIndex.add_packed does."""
        index = self._indexes.get(place)
        if index is None:
            index = PlainIndex(self._dimension)
        if isinstance(index, PlainIndex) and len(index) + len(entry_ids) <= PLAIN_ROWS:
            index.add_packed(entry_ids, packed)
            self._indexes[place] = index
            self._vectors += len(entry_ids)
        else:
            for entry_id, vector in zip(entry_ids, unpack(packed), strict=True):
                self.add(place, entry_id, vector)

    def _grown(self, place: Place, small: PlainIndex) -> VectorIndex:
        large = self._new_index(place)
        for entry_id, vector in small:
            large.add(entry_id, vector)
        return large

    def remove(self, place: Place, entry_ids: Collection[int]) -> None:
        """Forget vectors; a scope without vectors costs nothing."""
        if self._departed is not None:
            self._departed[place].extend(entry_ids)
        index = self._indexes.get(place)
        if index is None:
            return
        self._vectors -= index.remove(entry_ids)
        if not len(index):
            del self._indexes[place]
            if self._on_emptied is not None and not isinstance(index, PlainIndex):
                self._on_emptied(place)

    @contextmanager
    def noting_departures(self) -> Iterator[dict[Place, list[int]]]:
        """While the block runs: the ids that were removed, by their places."""
        self._departed = defaultdict(list)
        try:
            yield self._departed
        finally:
            self._departed = None

    def install(self, place: Place, index: VectorIndex) -> bool:
        """Put a filled index into its place, with what the place got meanwhile.

        Returns:
            False: the place has outgrown a plain matrix by itself, and nothing changed.
        """
        now = self._indexes.get(place)
        if now is not None and not isinstance(now, PlainIndex):
            return False
        for entry_id, vector in now or ():
            if entry_id not in index:
                index.add(entry_id, vector)
        self._vectors += len(index) - (0 if now is None else len(now))
        if len(index):
            self._indexes[place] = index
        return True

    async def search(self, place: Place, vector: Vector, k: int) -> list[Neighbor]:
        """Up to ``k`` nearest entries inside the place, best first."""
        index = self._indexes.get(place)
        if index is None:
            return []
        if len(index) <= self._inline_rows:
            return index.search(vector, k)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, index.search, vector, k)
