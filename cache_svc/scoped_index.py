"""One vector index for each scope of each tenant: similarity never leaves a scope.

Neighbours are found by asking the one index that belongs to the caller's tenant
and scope. There is no filter that could be forgotten and no shared object that
two tenants' vectors could meet in.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor

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
    """

    def __init__(
        self,
        dimension: int,
        new_index: Callable[[], VectorIndex],
        executor: Executor,
        *,
        inline_rows: int,
    ) -> None:
        self._dimension = dimension
        self._new_index = new_index
        self._executor = executor
        self._inline_rows = inline_rows
        self._indexes: dict[Place, VectorIndex] = {}
        self._vectors = 0

    def __len__(self) -> int:
        """Vectors in all scopes together."""
        return self._vectors

    @property
    def scopes(self) -> int:
        """Scopes that hold at least one vector."""
        return len(self._indexes)

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
            index = self._grown(index)
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

    def _grown(self, small: PlainIndex) -> VectorIndex:
        large = self._new_index()
        for entry_id, vector in small:
            large.add(entry_id, vector)
        return large

    def remove(self, place: Place, entry_ids: Collection[int]) -> None:
        """Forget vectors; a scope without vectors costs nothing."""
        index = self._indexes.get(place)
        if index is None:
            return
        self._vectors -= index.remove(entry_ids)
        if not len(index):
            del self._indexes[place]

    async def search(self, place: Place, vector: Vector, k: int) -> list[Neighbor]:
        """Up to ``k`` nearest entries inside the place, best first."""
        index = self._indexes.get(place)
        if index is None:
            return []
        if len(index) <= self._inline_rows:
            return index.search(vector, k)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, index.search, vector, k)
