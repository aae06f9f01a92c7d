"""A prefix to retain is counted in tokens of the very prompt it belongs to."""

from collections.abc import Sequence

import pytest
from google.protobuf.duration_pb2 import Duration

from inference_svc.engine import Chat, ChatMessage, Retention, Tool
from inference_svc.engines.scripted import ScriptedEngine
from inference_svc.retention import read_retention
from inference_svc.settings import ScriptedSettings
from inference_svc.slots import Slots
from sidecache.v1 import inference_pb2 as pb

ENGINE = ScriptedEngine(ScriptedSettings(), Slots(1, 1))
CHAT = Chat((ChatMessage("system", "Be brief."), ChatMessage("user", "Why?")))


async def read(chat: Chat, ids: Sequence[int], leading_messages: int) -> Retention | None:
    wish = pb.PrefixRetention(priority=7, leading_messages=leading_messages)
    request = pb.GenerateRequest(retention=wish)
    return await read_retention(request, chat, ids, ENGINE.tokenize)


async def test_leading_messages_end_where_the_prompt_goes_on() -> None:
    """What the template adds for an answer is not counted: the prompt has another turn there."""
    ids = await ENGINE.tokenize(CHAT)
    retention = await read(CHAT, ids, leading_messages=1)
    assert retention == Retention(len("system: Be brief.\n"), 7, None)


async def test_a_template_that_looks_back_gives_a_shorter_prefix() -> None:
    """Where the whole prompt begins otherwise than its leading messages, only that much counts."""
    ids = await ENGINE.tokenize(CHAT)
    ids[3] = 0
    retention = await read(CHAT, ids, leading_messages=1)
    assert retention is not None
    assert retention.prompt_tokens == 3


async def test_no_number_means_the_whole_prompt() -> None:
    """0 leading messages, or all of them with what asks for the answer."""
    ids = await ENGINE.tokenize(CHAT)
    for leading_messages in (0, 2):
        retention = await read(CHAT, ids, leading_messages=leading_messages)
        assert retention is not None
        assert retention.prompt_tokens == len(ids)


async def test_leading_messages_are_rendered_with_the_prompts_tools() -> None:
    """Templates write tools before the messages: without them nothing would be in common."""
    chat = Chat(CHAT.messages, (Tool("add", "Adds.", "{}"),))

    async def tokenize(rendered: Chat) -> list[int]:
        tools = [-1 for _ in rendered.tools]
        return tools + [token for turn in rendered.messages for token in map(ord, turn.content)]

    wish = pb.PrefixRetention(priority=7, leading_messages=1)
    request, ids = pb.GenerateRequest(retention=wish), await tokenize(chat)
    retention = await read_retention(request, chat, ids, tokenize)
    assert retention == Retention(1 + len("Be brief."), 7, None)


async def test_a_duration_is_read_in_seconds() -> None:
    """To the nanosecond."""
    wish = pb.PrefixRetention(priority=1, duration=Duration(seconds=90, nanos=500_000_000))
    retention = await read_retention(
        pb.GenerateRequest(retention=wish), "text", (1, 2), ENGINE.tokenize
    )
    assert retention == Retention(2, 1, 90.5)


@pytest.mark.parametrize("prompt", ["text", (1, 2, 3)])
async def test_no_wish_is_none(prompt: object) -> None:
    """A request without the field retains nothing."""
    assert await read_retention(pb.GenerateRequest(), prompt, (1,), ENGINE.tokenize) is None
