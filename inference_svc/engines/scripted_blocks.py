"""The KV blocks of one scripted request, from its prefill to its end."""

from collections.abc import Iterable, Sequence

from inference_svc.engine import GenerationRequest
from inference_svc.engines.paged_cache import PagedCache
from inference_svc.kv_events import KvListener
from sidecache.kv_blocks import BlockHasher


class SequenceBlocks:
    """Pins what is cached of the prompt at once; the rest comes with :meth:`prefilled`.

    Attributes:
        cached_tokens: tokens that need no prefill. The last one always does: the next
            token comes of it.
        uncached_tokens: the others.
    """

    def __init__(
        self, cache: PagedCache, block_size: int, request: GenerationRequest, tell: KvListener
    ) -> None:
        self._cache = cache
        self._tell = tell
        self._hasher = BlockHasher(block_size, request.adapter, request.cache_salt)
        self._retention = request.retention
        self._tokens: Sequence[int] = request.prompt_token_ids
        if request.continuation is not None:
            self._tokens += request.continuation.token_ids
        self._names = self._hasher.hashes(self._tokens)
        self._pinned: Sequence[int] = self._names[: cache.match(self._names)]
        cache.pin(self._pinned)
        self.cached_tokens = min(len(self._pinned) * block_size, len(self._tokens) - 1)
        self.uncached_tokens = len(self._tokens) - self.cached_tokens

    def prefilled(self) -> None:
        """The prompt is computed: hold as much of it as there is room for."""
        held = len(self._pinned)
        parent = self._names[held - 1] if held else None
        stored = self._cache.store(self._names[held:], parent, held, self._tell)
        self._pinned = [*self._pinned, *stored]
        if self._retention is not None:
            blocks = self._retention.prompt_tokens // self._hasher.block_size
            self._cache.retain(
                self._pinned[:blocks], self._retention.priority, self._retention.duration_s
            )

    def ended(self, answers: Iterable[Sequence[int]]) -> None:
        """Keep the answers' blocks as well, and let go of all. Safe to call twice.

        Args:
            answers: the ids generated for each choice; empty before :meth:`prefilled`.
        """
        if len(self._pinned) == len(self._names):
            for ids in answers:
                self._keep_answer(ids)
        self._cache.unpin(self._pinned)
        self._pinned = ()
        self._names = []

    def _keep_answer(self, ids: Sequence[int]) -> None:
        # A choice's last token was sampled and never computed.
        rest = (*self._tokens[len(self._names) * self._hasher.block_size :], *ids[:-1])
        if len(rest) < self._hasher.block_size:
            return
        parent = self._names[-1] if self._names else None
        names = self._hasher.hashes(rest, parent)
        self._cache.unpin(self._cache.store(names, parent, len(self._names), self._tell))
