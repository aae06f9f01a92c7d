"""The indexes of all scopes, as the settings ask for them."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from cache_svc.durable.store import DurableStore
from cache_svc.entry import Place
from cache_svc.faiss_index import FaissIndex
from cache_svc.gpu.device import Gpu
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.index_shelf import IndexShelf
from cache_svc.ivf_index import IvfIndex
from cache_svc.large_index import BuildLarge, on_cpu, on_gpu
from cache_svc.returning_indexes import return_indexes
from cache_svc.scoped_index import ScopedIndex
from cache_svc.settings import CacheSettings, SemanticSettings

SNAPSHOTS = "indexes"


@dataclass(frozen=True, slots=True)
class _Grower:
    """Makes the index of a scope that outgrew a plain matrix."""

    dimension: int
    builder: Builder
    policy: RebuildPolicy
    build_large: BuildLarge
    shelf: IndexShelf | None

    def grown(self, place: Place, start: IvfIndex | None = None) -> GrowingIndex:
        on_built = None if self.shelf is None else partial(self.shelf.save, place)
        return GrowingIndex(
            self.dimension,
            self.builder,
            self.policy,
            start=start,
            on_built=on_built,
            build_large=self.build_large,
        )

    def emptied(self, place: Place) -> None:
        """Snapshots are written and dropped on one thread, in the order of the events."""
        if self.shelf is not None:
            with contextlib.suppress(RuntimeError):  # closing; the next start drops it
                self.builder.submit(partial(self.shelf.discard, place))


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """The indexes, and how those of large scopes return after a restart."""

    scoped: ScopedIndex
    _grower: _Grower | None

    async def bring_back(self, store: DurableStore) -> int:
        """Load what snapshots there are; returns how many vectors came back."""
        grower = self._grower
        if grower is None or grower.shelf is None:
            return 0
        return await return_indexes(
            grower.shelf, store.entries, self.scoped, grower.grown, grower.policy.least_inverted
        )


def open_index(
    settings: CacheSettings,
    executor: Executor,
    builder: Builder,
    *,
    dimension: int,
    fingerprint: str,
) -> OpenIndex:
    """Empty indexes.

    Args:
        settings: which kind, and where snapshots lie.
        executor: runs long searches.
        builder: runs rebuilds.
        dimension: of the embedder's vectors; 0 where the semantic tier is off.
        fingerprint: of the embedder.

    Raises:
        SetupError: the settings ask for a GPU, and it is not to be had.
    """
    semantic = settings.semantic
    scoped = partial(ScopedIndex, dimension, executor=executor, inline_rows=semantic.inline_rows)
    if semantic.index == "flat" or not semantic.enabled:
        flat: Callable[[Place], FaissIndex] = lambda _place: FaissIndex(dimension)  # noqa: E731
        return OpenIndex(scoped(flat), None)
    shelf = None
    if settings.store.path is not None and settings.store.index_snapshots:
        shelf = IndexShelf(settings.store.path / SNAPSHOTS, fingerprint, dimension)
    policy = RebuildPolicy(semantic.flat_rows, semantic.rebuild_factor)
    grower = _Grower(dimension, builder, policy, _build_large(semantic), shelf)
    return OpenIndex(scoped(grower.grown, on_emptied=grower.emptied), grower)


def _build_large(settings: SemanticSettings) -> BuildLarge:
    kind = settings.index
    if kind == "flat" or kind == "ivf":  # noqa: PLR1714  mypy narrows no membership
        return on_cpu
    gpu = Gpu.open(settings.gpu.device, settings.gpu.max_bytes, graph=kind == "gpu_cagra")
    return on_gpu(kind, gpu, settings.gpu.least_rows)
