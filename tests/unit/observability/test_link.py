"""The frames of a link, and where it lies."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.link import Frames, frame, link_path
from sidecache.errors import InvalidRequest


@given(
    st.lists(st.binary(max_size=40), max_size=20),
    st.lists(st.integers(0, 900), max_size=30),
)
def test_messages_come_out_as_they_went_in(messages: list[bytes], cuts: list[int]) -> None:
    """However the bytes arrive, in one piece or one by one."""
    sent = b"".join(map(frame, messages))
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    frames = Frames(40)
    received: list[bytes] = []
    for start, end in itertools.pairwise(edges):
        received += frames.feed(sent[start:end])
    assert received == messages


def test_a_message_comes_as_soon_as_it_is_whole() -> None:
    """Not before its last byte, and without waiting for the next one's first."""
    frames = Frames(10)
    sent = frame(b"one") + frame(b"two")
    assert frames.feed(sent[:6]) == []
    assert frames.feed(sent[6:10]) == [b"one"]
    assert frames.feed(sent[10:]) == [b"two"]


def test_a_message_that_is_too_long_is_refused_by_its_length_alone() -> None:
    """Before anybody has to keep its bytes."""
    assert Frames(10).feed(frame(bytes(10))) == [bytes(10)]
    with pytest.raises(InvalidRequest, match="11 bytes; may have 10"):
        Frames(10).feed(frame(bytes(11))[:4])


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("unix:/run/cache.sock", "/run/cache.sock.link"),
        ("unix:///run/cache.sock", "/run/cache.sock.link"),
        ("127.0.0.1:7071", None),
        ("dns:cache:7071", None),
        ("unix:cache.sock", None),
        (f"unix:/{'x' * 102}", None),
    ],
)
def test_only_a_unix_socket_with_room_for_its_name_has_a_link(
    target: str, path: str | None
) -> None:
    """Both ends come to the same answer by themselves."""
    assert link_path(target) == path
