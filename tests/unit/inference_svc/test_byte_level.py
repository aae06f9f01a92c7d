"""Text of byte-level tokens, whole characters only."""

from hypothesis import given
from hypothesis import strategies as st

from inference_svc.byte_level import ByteLevelDecoder, token_bytes

# One token a byte; 256 is a special token.
VOCABULARY = [bytes([byte]) for byte in range(256)] + [b""]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_text_cut_anywhere_comes_out_whole(text: str, cuts: list[int]) -> None:
    """Deltas put together are the text, and none shows half a character."""
    decoder = ByteLevelDecoder(VOCABULARY)
    output = [decoder.push(piece) for piece in pieces(text.encode(), cuts)] + [decoder.flush()]
    assert "".join(output) == text
    assert "".join(output).count("\ufffd") == text.count("\ufffd")


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_decode_as_at_once(data: bytes, cuts: list[int]) -> None:
    """Even bytes that are no UTF-8 give what decoding them all at once gives."""
    decoder = ByteLevelDecoder(VOCABULARY)
    output = [decoder.push(piece) for piece in pieces(data, cuts)] + [decoder.flush()]
    assert "".join(output) == data.decode("utf-8", "replace")


def test_an_unfinished_character_waits() -> None:
    """Three bytes of an emoji show nothing; the fourth shows it; a special token nothing."""
    decoder = ByteLevelDecoder(VOCABULARY)
    *first, last = "😀".encode()
    assert decoder.push(first) == ""
    assert decoder.push([256]) == ""
    assert decoder.push([last]) == "😀"


def test_token_bytes_reads_the_gpt2_alphabet() -> None:
    """A leading space is written as U+0120, a newline as U+010A."""
    assert token_bytes("Ġhello") == b" hello"
    assert token_bytes("Ċ") == b"\n"
    assert token_bytes("Ã©") == "é".encode()
