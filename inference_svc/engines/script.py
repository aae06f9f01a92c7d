"""The script of the scripted engine: which token stands where, and what it reads like."""

import hashlib
import struct
from collections.abc import Sequence

from inference_svc.byte_level import ByteLevelDecoder
from inference_svc.choice import TextDecoder

SCRIPTED_VOCABULARY = 4096
# Raise it when scripted_token or scripted_text changes: it is the revision.
SCRIPT_VERSION = 1
_MASK = 2**64 - 1

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiu"
_SYLLABLES = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)
_WORDS = tuple(f" {first}{second}" for first in _SYLLABLES for second in _SYLLABLES)


def scripted_token(seed: int, position: int) -> int:
    """The token at ``position``, counted from 0, in [0, SCRIPTED_VOCABULARY).

    SplitMix64 (Steele, Lea and Flood, 2014) of both numbers: any two seeds give
    unrelated streams, and a token says nothing about the next.
    """
    mixed = (seed * 0xD1342543DE82EF95 + position * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) % SCRIPTED_VOCABULARY


def scripted_text(token: int) -> str:
    """The token's text: a space and two syllables, another for each token."""
    return _WORDS[token]


def prompt_seed(prompt_token_ids: Sequence[int], adapter: str = "") -> int:
    """The seed of a request that brings none.

    The first 8 bytes, big endian, of the BLAKE2b of the ids as little-endian uint32 and
    the adapter's name as UTF-8.
    """
    packed = struct.pack(f"<{len(prompt_token_ids)}I", *prompt_token_ids) + adapter.encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest())


class Words:
    """Every scripted token is readable at once."""

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([_WORDS[token_id] for token_id in token_ids])

    def flush(self) -> str:
        return ""


# Characters of one to four bytes, in an order that repeats every ten bytes.
_WIDTHS = ("abcdefgh", "éèàùçñöß", "語文字車山川日月", "😀🚀🎉🌍🐍🔥🧪🦊")
_LETTER_BYTES = 10
_BYTES = tuple(bytes([byte]) for byte in range(256))


def scripted_byte(seed: int, position: int) -> int:
    """The token at ``position`` of a vocabulary of bytes: text that every cut may split.

    Ten bytes at a time are a letter of one byte, of two, of three and of four, drawn by
    :func:`scripted_token`.
    """
    group, place = divmod(position, _LETTER_BYTES)
    drawn = scripted_token(seed, group)
    letters = [letters[(drawn >> (3 * n)) % 8] for n, letters in enumerate(_WIDTHS)]
    return "".join(letters).encode()[place]


class Script:
    """What the engine says: tokens by seed and position, and how they read.

    Args:
        in_bytes: a token is a byte of a text, rather than a word.
    """

    def __init__(self, *, in_bytes: bool) -> None:
        self.token = scripted_byte if in_bytes else scripted_token
        self._in_bytes = in_bytes

    def decoder(self) -> TextDecoder:
        """A fresh decoder, for one choice."""
        return ByteLevelDecoder(_BYTES) if self._in_bytes else Words()
