"""vLLM's KV events, translated into our block names."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.engines.vllm_blocks import BlockNames
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from sidecache.kv_blocks import BlockHasher

SIZE = 4


def stored(hashes: list[Any], ids: list[int], parent: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent,
        "token_ids": ids, "block_size": SIZE, "lora_id": None, "medium": "GPU",
        "lora_name": None, **more,
    }  # fmt: skip


def removed(hashes: list[Any], **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", **more}


@pytest.fixture
def told() -> list[KvEvent]:
    return []


@pytest.fixture
def names(told: list[KvEvent]) -> BlockNames:
    return BlockNames(SIZE, 100, told.append)


IDS = list(range(10, 22))
NAMES = BlockHasher(SIZE).hashes(IDS)


def test_blocks_are_chained_as_a_sidecar_chains_them(
    names: BlockNames, told: list[KvEvent]
) -> None:
    """Told in two events, three blocks have the names of the prompt as a whole."""
    assert names.apply(stored([b"a", b"b"], IDS[:8]))
    assert names.apply(stored([b"c"], IDS[8:], parent=b"b"))
    assert told == [
        BlocksStored(tuple(NAMES[:2])),
        BlocksStored((NAMES[2],), NAMES[1]),
    ]


def test_what_is_held_is_told_once(names: BlockNames, told: list[KvEvent]) -> None:
    """Blocks found in the cache are announced again (0.32): only what is new is passed on."""
    names.apply(stored([1, 2], IDS[:8]))
    names.apply(removed([1]))
    told.clear()
    names.apply(stored([1, 2, 3], IDS))
    assert told == [BlocksStored((NAMES[0],)), BlocksStored((NAMES[2],), NAMES[1])]


def test_an_evicted_block_is_still_a_parent(names: BlockNames, told: list[KvEvent]) -> None:
    """A running request may hold a second copy of a block and go on from it."""
    names.apply(stored([1], IDS[:4]))
    names.apply(removed([1]))
    assert names.apply(stored([2], IDS[4:8], parent=1))
    assert told[-1] == BlocksStored((NAMES[1],), NAMES[0])


def test_an_unknown_parent_is_reported(names: BlockNames, told: list[KvEvent]) -> None:
    """Blocks without a known chain are left out, never named wrongly."""
    assert not names.apply(stored([2], IDS[4:8], parent=1))
    assert told == []
    assert names.unnamed_blocks == 1


@pytest.mark.parametrize(
    ("more", "adapter", "salt"),
    [
        ({"extra_keys": [("s1",)]}, "", "s1"),
        ({"lora_name": "law", "extra_keys": [("law",)]}, "law", ""),
        ({"lora_name": "law", "extra_keys": [("law", "s1")]}, "law", "s1"),
        ({"lora_name": "law", "extra_keys": None}, "law", ""),
        ({"extra_keys": [None]}, "", ""),
    ],
)
def test_adapter_and_salt_are_in_the_name(
    names: BlockNames, told: list[KvEvent], more: dict[str, Any], adapter: str, salt: str
) -> None:
    """As in a sidecar's, whichever of them a prompt has."""
    names.apply(stored([1], IDS[:4], **more))
    assert told == [BlocksStored(tuple(BlockHasher(SIZE, adapter, salt).hashes(IDS[:4])))]


@pytest.mark.parametrize(
    "more", [{"medium": "CPU"}, {"group_idx": 1}, {"locality": "REMOTE"}, {"token_ids": IDS[:3]}]
)
def test_other_memory_and_part_blocks_are_not_told(
    names: BlockNames, told: list[KvEvent], more: dict[str, Any]
) -> None:
    """Only whole blocks that the device computes with count."""
    assert names.apply(stored([1], IDS[:4], **more))
    assert told == []


def test_a_removal_from_other_memory_takes_nothing(names: BlockNames, told: list[KvEvent]) -> None:
    """What leaves the offloaded copy is still on the device."""
    names.apply(stored([1], IDS[:4]))
    names.apply(removed([1], medium="CPU"))
    assert len(names) == 1
    assert told == [BlocksStored((NAMES[0],))]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200))
def test_the_telling_adds_up(steps: list[tuple[bool, int]]) -> None:
    """Whatever comes and goes: what was told, put together, is what is held; memory is bounded."""
    told: list[KvEvent] = []
    names = BlockNames(SIZE, 8, told.append)
    model: set[int] = set()
    for adds, number in steps:
        if adds and len(model) < 8:
            names.apply(stored([number], [number] * SIZE))
            model.add(number)
        elif not adds:
            names.apply(removed([number]))
            model.discard(number)
    held: set[int] = set()
    for event in told:
        match event:
            case BlocksStored(hashes):
                assert not held & set(hashes)
                held.update(hashes)
            case BlocksRemoved(hashes):
                assert held >= set(hashes)
                held.difference_update(hashes)
            case CacheCleared():
                held.clear()
    assert held == {BlockHasher(SIZE).hashes([each] * SIZE)[0] for each in model}
    assert len(names) == len(model)
    assert len(names._names) <= 4 * 8
