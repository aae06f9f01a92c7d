"""Python arguments become exactly the request they describe, or a named refusal."""

from typing import Any

import pytest

from sidecache.errors import InvalidRequest
from sidecache.generate_request import build_request
from sidecache.v1 import inference_pb2 as pb


def test_a_string_is_one_user_turn() -> None:
    """A plain prompt is a chat; what is not given stays unset, which is not zero."""
    request = build_request("hello", {})
    assert list(request.chat.messages) == [pb.ChatMessage(role="user", content="hello")]
    assert not request.HasField("max_tokens")
    assert not request.sampling.HasField("temperature")
    assert not request.HasField("cache")


def test_messages_may_be_mappings() -> None:
    """A chat is given as messages or as mappings, in any mixture."""
    request = build_request(
        [{"role": "system", "content": "be brief"}, pb.ChatMessage(role="user", content="hi")], {}
    )
    assert [m.role for m in request.chat.messages] == ["system", "user"]


def test_text_and_token_ids_take_the_place_of_a_prompt() -> None:
    """A raw completion and raw ids are not wrapped in a chat."""
    assert build_request(None, {"text": "Once"}).WhichOneof("prompt") == "text"
    assert list(build_request(None, {"token_ids": [1, 2]}).token_ids.ids) == [1, 2]
    # Empty ones are still that kind of prompt: the server says what is wrong.
    assert build_request(None, {"token_ids": []}).WhichOneof("prompt") == "token_ids"
    assert build_request([], {}).WhichOneof("prompt") == "chat"


def test_every_option_reaches_its_field() -> None:
    """No option is dropped, zeros included."""
    request = build_request(
        "q",
        {
            "model": "m", "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3,
            "seed": 0, "presence_penalty": 1.0, "frequency_penalty": -1.0,
            "repetition_penalty": 1.5, "stop": ["a", "b"], "n": 2, "logprobs": 0,
            "guided": pb.GuidedDecoding(regex="a+"), "adapter": "l", "priority": -1,
            "tools": [pb.Tool(name="t")],
            "cache": pb.CacheControl(namespace="ns", no_store=True),
            "retention": pb.PrefixRetention(priority=80, leading_messages=1),
        },
    )  # fmt: skip
    assert request == pb.GenerateRequest(
        model="m",
        chat=pb.Chat(
            messages=[pb.ChatMessage(role="user", content="q")], tools=[pb.Tool(name="t")]
        ),
        sampling=pb.SamplingParameters(
            temperature=0.0, top_p=0.5, top_k=3, seed=0, presence_penalty=1.0,
            frequency_penalty=-1.0, repetition_penalty=1.5,
        ),
        max_tokens=5, stop=["a", "b"], n=2, logprobs=0, adapter="l", priority=-1,
        guided=pb.GuidedDecoding(regex="a+"),
        cache=pb.CacheControl(namespace="ns", no_store=True),
        retention=pb.PrefixRetention(priority=80, leading_messages=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        (None, {}, "prompt"),
        ("a", {"text": "b"}, "prompt"),
        ("a", {"max_tokens": -1}, "max_tokens"),
        ("a", {"max_tokens": 2**32}, "max_tokens"),
        ("a", {"max_tokens": "many"}, "max_tokens"),
        ("a", {"seed": -1}, "sampling.seed"),
        ("a", {"temperature": "hot"}, "sampling.temperature"),
        ("a", {"stop": [1]}, "stop"),
        ("a", {"cache": pb.Chat()}, "cache"),
        ("a", {"max_token": 5}, "max_token"),
        (None, {"token_ids": [-1]}, "token_ids"),
        (None, {"text": "\ud800"}, "text"),
        ("\ud800", {}, "chat.messages[0]"),
        ([{"role": "user", "text": "?"}], {}, "chat.messages[0]"),
    ],
)
def test_a_bad_argument_names_its_field(prompt: Any, options: Any, field: str) -> None:
    """What a field cannot hold is refused before anything is sent, by name."""
    with pytest.raises(InvalidRequest) as refused:
        build_request(prompt, options)
    assert refused.value.field == field


def test_a_lone_stop_string_is_one_stop() -> None:
    """`stop="END"` is not E, N and D."""
    options: Any = {"stop": "END"}
    assert list(build_request("q", options).stop) == ["END"]
