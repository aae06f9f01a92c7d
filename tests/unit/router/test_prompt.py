"""How a prompt begins, in hashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix import PrefixHint
from router.prompt import Footprint, make_footprint
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import chat, make_prompt


def of(request: pb.GenerateRequest, tenant: str = "acme") -> Footprint:
    return make_footprint(request, tenant)


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    """Names of the first turns stay what they were; so does the conversation."""
    first = of(chat("x" * 5000))
    later = of(chat("x" * 5000, "an answer", "and then?"))
    assert later.names[: len(first.names)] == first.names
    assert len(later.names) > len(first.names)
    assert later.affinity == first.affinity


@given(st.binary(min_size=1, max_size=9000), st.integers(0, 8999))
def test_a_changed_byte_changes_every_name_from_there_on(content: bytes, at: int) -> None:
    """And none before it."""
    text = content.decode("latin1").encode("ascii", "replace").decode()
    at %= len(text)
    changed = text[:at] + ("b" if text[at] == "a" else "a") + text[at + 1 :]
    one, other = (of(pb.GenerateRequest(text=t)) for t in (text, changed))
    for mine, theirs, end in zip(one.names, other.names, one.ends, strict=True):
        assert (mine == theirs) is (end <= at)


def test_ends_grow_to_the_size() -> None:
    """A name's share of the prompt can be told."""
    footprint = of(chat("x" * 10_000, "y", "z"))
    assert list(footprint.ends) == sorted(set(footprint.ends))
    assert footprint.ends[-1] == footprint.size > 10_000


def test_names_are_bounded_for_a_huge_prompt() -> None:
    """A prompt at the gateway's own limit and far beyond costs a bounded memory."""
    footprint = of(pb.GenerateRequest(text="x" * (32 << 20)))
    assert len(footprint.names) == 4096
    assert footprint.size == 32 << 20


def test_salts_adapters_and_tenants_are_kept_apart() -> None:
    """Equal prompts of different tenants never meet by name."""
    mine, theirs = of(chat("hi", salt="a")), of(chat("hi", salt="b"))
    assert not set(mine.names) & set(theirs.names)
    adapted = chat("hi")
    adapted.adapter = "lora"
    assert not set(of(chat("hi")).names) & set(of(adapted).names)
    assert of(chat("hi"), "acme").affinity != of(chat("hi"), "umbrella").affinity


def test_a_shared_system_prompt_is_not_yet_a_conversation() -> None:
    """Conversations part at the user's first words, not before."""
    system = pb.ChatMessage(role="system", content="You are kind. " * 100)
    one, other = chat("one"), chat("other")
    for request in (one, other):
        request.chat.messages.insert(0, system)
    assert of(one).names[0] == of(other).names[0]
    assert of(one).affinity != of(other).affinity


def test_roles_and_boundaries_are_part_of_a_name() -> None:
    """The same words in other turns are another prompt."""
    assert not set(of(chat("ab", "c")).names) & set(of(chat("a", "bc")).names)


@pytest.mark.parametrize(
    ("hint", "tokens"),
    [
        (None, 0),
        (PrefixHint(prompt_token_ids=(1, 2, 3)), 3),
        (PrefixHint(prompt_blocks=4, block_size=16), 64),
    ],
)
def test_the_length_is_known_where_somebody_counted(hint: PrefixHint | None, tokens: int) -> None:
    """The sidecar's count, or nobody's."""
    assert make_prompt(chat("hello"), hint=hint).known_tokens == tokens
    ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(7)))
    assert make_prompt(ids, hint=hint).known_tokens == 7
