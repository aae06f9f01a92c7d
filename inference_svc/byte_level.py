"""Byte-level vocabularies: from a token to its bytes, and from tokens to text.

In a byte-level vocabulary (GPT-2) each token stands for any run of bytes, so a
character may begin in one token and end in the next.
"""

import codecs
from collections.abc import Sequence


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins, reversed.

    188 bytes stand for themselves, the others for U+0100 and on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    stand_ins.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return stand_ins


_BYTES = _byte_of_character()


def token_bytes(token: str) -> bytes:
    """The bytes that a vocabulary's entry stands for.

    Raises:
        KeyError: the entry is not written in the byte-level alphabet.
    """
    return bytes([_BYTES[character] for character in token])


class ByteLevelDecoder:
    """Text of one growing sequence, character by whole character.

    What it gave, put together, is always what decoding all the ids at once
    gives: bytes that are no UTF-8 become U+FFFD, but only when it is certain
    that no further token completes them.

    Args:
        vocabulary: bytes of each id; empty for special tokens, which have no text.
    """

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids make readable."""
        return self._decoder.decode(b"".join([self._vocabulary[each] for each in token_ids]))

    def flush(self) -> str:
        """What an unfinished character leaves when nothing follows: U+FFFD or nothing."""
        return self._decoder.decode(b"", final=True)
