"""What a worker refuses, and how it says so."""

from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from inference_svc.settings import ScriptedSettings
from sidecache.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    SidecacheError,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.worker import ids_of, worker


def chat(*turns: tuple[str, str], **more: Any) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **more))


def sampled(**values: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", sampling=pb.SamplingParameters(**values))


def retained(**values: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", retention=pb.PrefixRetention(**values))


BAD: dict[str, tuple[pb.GenerateRequest, type[SidecacheError], str]] = {
    "no prompt": (pb.GenerateRequest(), InvalidRequest, "prompt"),
    "empty text": (pb.GenerateRequest(text=""), InvalidRequest, "text"),
    "empty chat": (chat(), InvalidRequest, "chat.messages"),
    "empty turn": (chat(("user", "")), InvalidRequest, "chat.messages[0].content"),
    "empty ids": (
        pb.GenerateRequest(token_ids=pb.TokenIds()), InvalidRequest, "token_ids.ids"),
    "unknown role": (chat(("user", "x"), ("boss", "x")), InvalidRequest, "chat.messages[1].role"),
    "tools without a template for them": (
        chat(("user", "x"), tools=[pb.Tool(name="t")]), InvalidRequest, "chat.tools"),
    "id out of the vocabulary": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 4096])),
        InvalidRequest, "token_ids.ids[1]"),
    "zero max_tokens": (
        pb.GenerateRequest(text="x", max_tokens=0), InvalidRequest, "max_tokens"),
    "huge max_tokens": (
        pb.GenerateRequest(text="x", max_tokens=2**32 - 1), PromptTooLong, "max_tokens"),
    "prompt over the context": (
        pb.GenerateRequest(text="x" * 9000), PromptTooLong, "prompt"),
    "prompt over the bytes": (
        pb.GenerateRequest(text="x" * 2_100_000), PromptTooLong, "text"),
    "zero n": (pb.GenerateRequest(text="x", n=0), InvalidRequest, "n"),
    "huge n": (pb.GenerateRequest(text="x", n=1000), InvalidRequest, "n"),
    "top logprobs": (pb.GenerateRequest(text="x", logprobs=3), InvalidRequest, "logprobs"),
    "empty stop": (pb.GenerateRequest(text="x", stop=["a", ""]), InvalidRequest, "stop[1]"),
    "long stop": (pb.GenerateRequest(text="x", stop=["a" * 999]), InvalidRequest, "stop[0]"),
    "many stops": (pb.GenerateRequest(text="x", stop=["a"] * 99), InvalidRequest, "stop"),
    "hot": (sampled(temperature=2.5), InvalidRequest, "sampling.temperature"),
    "NaN": (sampled(temperature=float("nan")), InvalidRequest, "sampling.temperature"),
    "top_p": (sampled(top_p=0), InvalidRequest, "sampling.top_p"),
    "presence": (sampled(presence_penalty=-3), InvalidRequest, "sampling.presence_penalty"),
    "frequency": (sampled(frequency_penalty=3), InvalidRequest, "sampling.frequency_penalty"),
    "repetition": (
        sampled(repetition_penalty=0), InvalidRequest, "sampling.repetition_penalty"),
    "long salt": (
        pb.GenerateRequest(text="x", cache_salt="x" * 300), InvalidRequest, "cache_salt"),
    "retention without priority": (retained(), InvalidRequest, "retention.priority"),
    "retention over all priorities": (
        retained(priority=101), InvalidRequest, "retention.priority"),
    "retention for no time": (
        retained(priority=5, duration=duration_pb2.Duration()),
        InvalidRequest, "retention.duration"),
    "retention for negative time": (
        retained(priority=5, duration=duration_pb2.Duration(seconds=-1)),
        InvalidRequest, "retention.duration"),
    "retained messages of a text": (
        retained(priority=5, leading_messages=1), InvalidRequest, "retention.leading_messages"),
    "grammar": (
        pb.GenerateRequest(text="x", guided=pb.GuidedDecoding(regex="a")),
        InvalidRequest, "guided.regex"),
    "continued choices": (
        pb.GenerateRequest(text="x", n=2, continuation=pb.Continuation(delivered_token_ids=[1])),
        InvalidRequest, "n"),
    "continued nonsense": (
        pb.GenerateRequest(text="x", continuation=pb.Continuation(delivered_token_ids=[9999])),
        InvalidRequest, "continuation.delivered_token_ids[0]"),
}  # fmt: skip


async def test_bad_input_is_refused_by_name() -> None:
    """Each bad field is named with what it may be, takes no slot, and the worker goes on."""
    async with worker() as served:
        for case, (request, error, field) in BAD.items():
            with pytest.raises(error) as refused:
                await served.events(request)
            assert isinstance(refused.value, InvalidRequest), case
            assert refused.value.field == field, case
            assert type(refused.value) is error, case
        assert (await served.load()).running_sequences == 0
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_over_long_prompts_name_both_numbers() -> None:
    """The caller learns how long the prompt is and how much fits."""
    async with worker(scripted=ScriptedSettings(context_length=100)) as served:
        with pytest.raises(PromptTooLong, match=r"150 tokens.*100"):
            await served.events(pb.GenerateRequest(text="x" * 150))
        with pytest.raises(PromptTooLong, match=r"50 .*60 tokens.*100.*40 are left"):
            await served.events(pb.GenerateRequest(text="x" * 60, max_tokens=50))


async def test_an_unknown_model_names_what_there_is() -> None:
    """ModelNotFound, with the model that is served."""
    async with worker() as served:
        with pytest.raises(ModelNotFound, match=r"'gpt-9'.*'scripted'"):
            await served.events(pb.GenerateRequest(model="gpt-9", text="x"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served.inference.Tokenize(pb.TokenizeRequest(model="gpt-9", text="x"))
        assert isinstance(from_rpc_error(error.value), ModelNotFound)


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x12\x02\xc3\x28"])
async def test_malformed_bytes_are_an_invalid_request(payload: bytes) -> None:
    """Bytes that are no message, or a string that is no UTF-8, are the caller's error."""
    async with worker() as served:
        raw: Any = served.channel.unary_stream("/sidecache.v1.InferenceService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in raw(payload):
                pass
        assert isinstance(from_rpc_error(error.value), InvalidRequest)
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3


async def test_a_huge_message_is_refused() -> None:
    """64 MiB are refused by the transport, and the worker goes on."""
    async with worker() as served:
        with pytest.raises(Overloaded):
            await served.events(pb.GenerateRequest(text="x" * 64 * 1024 * 1024))
        assert len(ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=3)))) == 3
