"""Names of KV blocks, the same in every process: chained hashes over token ids.

Worker and sidecar must agree on them bit for bit, so there is one place that
computes them. A block's name covers the tokens in it, everything before it, the
block size, the adapter and the cache salt; equal names therefore mean equal KV
content within one model. The chain by seed is that of Dynamo's router; the hash is
XXH3-64. It is not cryptographic: who forges a collision is routed badly and gets
no other answer for it.
"""

import struct
from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

HASH_BYTES = 8


class BlockHasher:
    """Names the blocks of prompts that share block size, adapter and salt.

    Args:
        block_size: tokens in a block, at least 1.
        adapter: the LoRA adapter's name; empty: the base model.
        salt: the tenant's cache salt; empty: none.
    """

    def __init__(self, block_size: int, adapter: str = "", salt: str = "") -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}, must be at least 1")
        self.block_size = block_size
        self.root = root_hash(block_size, adapter, salt)

    def hashes(self, token_ids: Sequence[int], parent: int | None = None) -> list[int]:
        """Names of the whole blocks in ``token_ids``; a last part of a block has none.

        Args:
            token_ids: of the prompt, from the parent's end on.
            parent: name of the block before the first token; None: there is none.

        Raises:
            TypeError: bytes were given; packed ids go to :meth:`hashes_of_packed`.
        """
        return self.hashes_of_packed(token_bytes(token_ids), parent)

    def hashes_of_packed(self, packed: bytes, parent: int | None = None) -> list[int]:
        """As :meth:`hashes`, of ids that :func:`token_bytes` has packed."""
        width = 4 * self.block_size
        whole = memoryview(packed)[: len(packed) - len(packed) % width]
        name = self.root if parent is None else parent
        # struct cuts the blocks in C, which takes half the time of slicing here.
        blocks = struct.iter_unpack(f"{width}s", whole)
        return [name := xxh3_64_intdigest(block, name) for (block,) in blocks]


def root_hash(block_size: int, adapter: str, salt: str) -> int:
    """What the first block is chained to."""
    # Lengths first, so that no two different triples are packed alike.
    adapter_bytes, salt_bytes = adapter.encode(), salt.encode()
    head = struct.pack("<III", block_size, len(adapter_bytes), len(salt_bytes))
    return xxh3_64_intdigest(head + adapter_bytes + salt_bytes)


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Ids as little-endian uint32.

    Raises:
        TypeError: bytes were given, which array() would take for packed ids.
    """
    if isinstance(token_ids, bytes | bytearray):
        raise TypeError("token ids are whole numbers; packed ones go to hashes_of_packed")
    return _little_endian(array("I", token_ids)).tobytes()


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """As the contract carries them: 8 bytes each, little endian."""
    return _little_endian(array("Q", hashes)).tobytes()


def unpack_hashes(packed: bytes) -> "array[int]":
    """What :func:`pack_hashes` packed.

    Raises:
        ValueError: the length is no multiple of 8.
    """
    hashes = array("Q")
    hashes.frombytes(packed)
    return _little_endian(hashes)


def _little_endian(numbers: "array[int]") -> "array[int]":
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        numbers.byteswap()
    return numbers
