"""vLLM's KV events in our own block names.

vLLM's own block hashes begin at a random root and depend on its settings, so they only
serve to find a block again: the names are :mod:`sidecache.kv_blocks`'s, computed from the
token ids. Source: vllm/distributed/kv_events.py.
"""

from collections.abc import Sequence
from typing import Any

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvListener
from sidecache.kv_blocks import BlockHasher

# Names remembered for each block the cache can hold: its own, and those of evicted ones.
_NAMES_A_BLOCK = 4

EngineHash = int | bytes


class BlockNames:
    """Translates vLLM's events; knows which blocks are held, and how they are called.

    A name follows from the block's content, so it outlives the block: a block is evicted
    while its copy in a running request goes on as a parent.

    Args:
        block_size: tokens in a block.
        max_blocks: blocks the cache can hold.
        tell: hears the translation.
    """

    def __init__(self, block_size: int, max_blocks: int, tell: KvListener) -> None:
        self._block_size = block_size
        self._max_blocks = max(1, max_blocks)
        self._tell = tell
        self._names: dict[EngineHash, int] = {}
        self._held: set[EngineHash] = set()
        self._hasher = BlockHasher(block_size)
        self.unnamed_blocks = 0

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, event: dict[str, Any]) -> bool:
        """Take one event, decoded.

        Returns:
            False if blocks had to be left out because their parent is not known.
        """
        match event.get("type"):
            case "BlockStored":
                return self._stored(event)
            case "BlockRemoved" if _on_device(event):
                self._removed(event["block_hashes"])
            case "AllBlocksCleared":
                self.clear()
        return True

    def clear(self) -> None:
        """Nothing is held any more; say so."""
        self._held.clear()
        self._tell(CacheCleared())

    def _stored(self, event: dict[str, Any]) -> bool:
        if not self._can_name(event):
            return True
        hashes = event["block_hashes"]
        parent: int | None = None
        hasher = self._hasher
        if event["parent_block_hash"] is None:
            hasher = BlockHasher(self._block_size, *_adapter_and_salt(event))
        else:
            parent = self._names.get(event["parent_block_hash"])
            if parent is None:
                self.unnamed_blocks += len(hashes)
                return False
        names = hasher.hashes(event["token_ids"], parent)
        for run_parent, run in self._new_runs(hashes, names, parent):
            self._tell(BlocksStored(run, run_parent))
        return True

    def _can_name(self, event: dict[str, Any]) -> bool:
        """Whether these are plain whole blocks of the device's own memory.

        Others belong to a second group of layers (sliding windows), to a partly filled
        block, or to memory that blocks were moved out to.
        """
        whole = len(event["token_ids"]) == len(event["block_hashes"]) * self._block_size
        return whole and _on_device(event)

    def _new_runs(
        self, hashes: Sequence[EngineHash], names: Sequence[int], parent: int | None
    ) -> list[tuple[int | None, tuple[int, ...]]]:
        """Hold what was not held; it as runs of neighbours, each with its parent.

        From 0.32 on vLLM also announces blocks that it found in its cache.
        """
        runs: list[tuple[int | None, list[int]]] = []
        before, extending = parent, False
        for engine_hash, name in zip(hashes, names, strict=True):
            self._name(engine_hash, name)
            new = engine_hash not in self._held
            if new:
                self._held.add(engine_hash)
                if not extending:
                    runs.append((before, []))
                runs[-1][1].append(name)
            before, extending = name, new
        return [(run_parent, tuple(run)) for run_parent, run in runs]

    def _name(self, engine_hash: EngineHash, name: int) -> None:
        """Remember a name; the oldest that is not held makes room."""
        self._names.pop(engine_hash, None)
        self._names[engine_hash] = name
        while len(self._names) > _NAMES_A_BLOCK * self._max_blocks:
            oldest = next(iter(self._names))
            kept = self._names.pop(oldest)
            if oldest in self._held:  # at most one block in _NAMES_A_BLOCK is
                self._names[oldest] = kept

    def _removed(self, hashes: Sequence[EngineHash]) -> None:
        gone = [each for each in hashes if each in self._held]
        self._held.difference_update(gone)
        if gone:
            self._tell(BlocksRemoved(tuple([self._names[each] for each in gone])))


def _on_device(event: dict[str, Any]) -> bool:
    """Whether it is about the first group of layers, in the memory that is computed with.

    vLLM says GPU there, on a CPU as well.
    """
    elsewhere = event.get("medium") not in {None, "GPU"} or event.get("locality") == "REMOTE"
    return not elsewhere and not event.get("group_idx")


def _adapter_and_salt(event: dict[str, Any]) -> tuple[str, str]:
    """Of a root block: vLLM puts both, in this order, into the first block's extra keys."""
    adapter = event.get("lora_name") or ""
    extra = event.get("extra_keys") or [None]
    texts = [each for each in extra[0] or () if isinstance(each, str)]
    if adapter and texts[:1] == [adapter]:
        texts = texts[1:]
    return adapter, texts[0] if texts else ""
