"""Names of KV blocks: the same in every process, release and machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sidecache.kv_blocks import BlockHasher, pack_hashes, root_hash, token_bytes, unpack_hashes

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


@pytest.mark.parametrize(
    ("hasher", "tokens", "names"),
    [
        (
            BlockHasher(4),
            12,
            [10541570873591102770, 4821670886174687654, 5601290742188373238],
        ),
        (
            BlockHasher(4, "ad", "salt"),
            12,
            [8070561153147861941, 5498926307476851830, 8530905583469268784],
        ),
        (BlockHasher(32), 70, [4430394861152019290, 1117285792228980732]),
    ],
)
def test_names_never_change(hasher: BlockHasher, tokens: int, names: list[int]) -> None:
    """A worker and a sidecar of different builds agree: these values are the contract."""
    assert hasher.hashes(range(tokens)) == names


def test_roots_never_change() -> None:
    """Block size, adapter and salt are inside; parts of one do not slip into the other."""
    assert root_hash(32, "", "") == 14813240956929417742
    assert root_hash(32, "a", "bc") == 16163692781271403551
    assert root_hash(32, "ab", "c") != root_hash(32, "a", "bc")


@given(ids=IDS, block_size=st.integers(1, 40))
def test_names_are_the_plain_chain(ids: list[int], block_size: int) -> None:
    """However fast they are made: each block's XXH3 with the name before it as seed."""
    name = root_hash(block_size, "a", "s")
    names = []
    for start in range(0, len(ids) - block_size + 1, block_size):
        name = xxh3_64_intdigest(token_bytes(ids[start : start + block_size]), name)
        names.append(name)
    assert BlockHasher(block_size, "a", "s").hashes(ids) == names


@given(ids=IDS, cut=st.integers(0, 6))
def test_names_go_on_from_a_parent(ids: list[int], cut: int) -> None:
    """A prompt named in two parts has the names of the whole."""
    hasher = BlockHasher(16)
    whole = hasher.hashes(ids)
    head = whole[:cut]
    tail = hasher.hashes(ids[16 * len(head) :], head[-1] if head else None)
    assert head + tail == whole


def test_a_last_part_of_a_block_has_no_name() -> None:
    """Only whole blocks are named."""
    assert BlockHasher(32).hashes(range(31)) == []


@given(names=st.lists(st.integers(0, 2**64 - 1)))
def test_names_survive_the_wire(names: list[int]) -> None:
    """Packed and unpacked they are the same; a length that is no multiple of 8 is refused."""
    packed = pack_hashes(names)
    assert list(unpack_hashes(packed)) == names
    with pytest.raises(ValueError, match="multiple"):
        unpack_hashes(packed + b"x")


@pytest.mark.parametrize("packed", [token_bytes([1, 2, 3, 4]), bytearray(16)])
def test_packed_ids_are_not_taken_for_ids(packed: bytes | bytearray) -> None:
    """Bytes where ids belong are an error: as ids they would name other blocks in silence."""
    with pytest.raises(TypeError, match="hashes_of_packed"):
        BlockHasher(4).hashes(packed)
