"""Bad input at the router's door: each a clear error with its status, and the service goes on."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from observability.settings import ServerSettings
from router.serve import serve
from router.settings import RouterSettings
from sidecache.errors import SetupError
from sidecache.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import KEYS, Stack, quiet_telemetry, scripted_stack, write_keys

CREDENTIALS = (("authorization", f"Bearer {KEYS['acme']}"),)
GENERATE = "/sidecache.v1.InferenceService/Generate"


class Raw:
    """The router as bytes and bare stubs see it."""

    def __init__(self, stack: Stack, channel: grpc.aio.Channel) -> None:
        self.stack = stack
        self.channel = channel
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)

    async def refusal(
        self, request: pb.GenerateRequest, metadata: Any = CREDENTIALS, timeout_s: float = 10
    ) -> grpc.aio.AioRpcError:
        """The error a request ends in; nothing may have been streamed before it."""
        call = self.stub.Generate(request, metadata=metadata, timeout=timeout_s)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        return refused.value

    async def is_well(self) -> None:
        """The service goes on: the next good request is answered, and nothing hangs about."""
        answer = await self.stack.client.complete("still there?", max_tokens=3)
        assert len(answer.token_ids) == 3
        for worker in self.stack.workers:
            figures = worker.engine.load_figures()
            assert (figures.running_sequences, figures.waiting_sequences) == (0, 0)


@pytest.fixture
async def raw(tmp_path: Path) -> AsyncIterator[Raw]:
    options = (("grpc.max_send_message_length", -1),)
    async with (
        scripted_stack(tmp_path) as stack,
        grpc.aio.insecure_channel(stack.router.address, options) as channel,
    ):
        yield Raw(stack, channel)


def chat(*messages: tuple[str, str], **fields: Any) -> pb.GenerateRequest:
    turns = [pb.ChatMessage(role=role, content=content) for role, content in messages]
    return pb.GenerateRequest(chat=pb.Chat(messages=turns), **fields)


def ask(**fields: Any) -> pb.GenerateRequest:
    return chat(("user", "hello"), **fields)


NAN, INF = float("nan"), float("inf")
Sampling = pb.SamplingParameters
Cache = pb.CacheControl

INVALID: dict[str, tuple[pb.GenerateRequest, str, str]] = {
    "nothing": (pb.GenerateRequest(), "prompt", "set text, chat or token_ids"),
    "empty text": (pb.GenerateRequest(text=""), "text", "at least one character"),
    "no messages": (pb.GenerateRequest(chat=pb.Chat()), "chat.messages", "at least one message"),
    "empty turn": (chat(("user", "")), "chat.messages[0].content", "at least one character"),
    "no ids": (pb.GenerateRequest(token_ids=pb.TokenIds()), "token_ids.ids", "at least one"),
    "ids outside": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 4096])),
        "token_ids.ids",
        "4096 is not in the vocabulary of scripted, whose ids run from 0 to 4095",
    ),
    "unknown role": (
        chat(("system", "x"), ("wizard", "hi")),
        "chat.messages[1].role",
        "'wizard'; may be system, user, assistant, tool",
    ),
    "too many messages": (chat(*[("user", "x")] * 1025), "chat.messages", "at most 1024"),
    "zero max_tokens": (ask(max_tokens=0), "max_tokens", "0; may be 1 to 8192"),
    "huge max_tokens": (ask(max_tokens=2**32 - 1), "max_tokens", "4294967295; may be 1 to 8192"),
    "answer over the context": (ask(max_tokens=8192), "max_tokens", "8192"),
    "prompt over the context": (chat(("user", "x" * 9000)), "prompt", "8192"),
    "zero n": (ask(n=0), "n", "0; may be 1 to 8"),
    "huge n": (ask(n=9), "n", "9; may be 1 to 8"),
    "logprobs": (ask(logprobs=5), "logprobs", "5; may be 0 to 0"),
    "stop empty": (ask(stop=["ok", ""]), "stop[1]", "0 bytes; may be 1 to 256"),
    "stop long": (ask(stop=["x" * 257]), "stop[0]", "257 bytes"),
    "stops": (ask(stop=["x"] * 17), "stop", "17 strings; at most 16"),
    "guided": (ask(guided=pb.GuidedDecoding(regex="a")), "guided", "no guided decoding"),
    "guided empty": (ask(guided=pb.GuidedDecoding()), "guided", "set json_schema or regex"),
    "tool schema": (
        pb.GenerateRequest(
            chat=pb.Chat(
                messages=[pb.ChatMessage(role="user", content="x")],
                tools=[pb.Tool(name="t", parameters_json_schema="{")],
            )
        ),
        "chat.tools[0].parameters_json_schema",
        "not JSON",
    ),
    "continuation": (
        ask(continuation=pb.Continuation(delivered_token_ids=[1])),
        "continuation",
        "only a router",
    ),
    "temperature": (
        ask(sampling=Sampling(temperature=-1)),
        "sampling.temperature",
        "-1; may be 0 to 2",
    ),
    "temperature nan": (ask(sampling=Sampling(temperature=NAN)), "sampling.temperature", "nan"),
    "top_p": (ask(sampling=Sampling(top_p=0)), "sampling.top_p", "0; may be above 0 up to 1"),
    "presence": (ask(sampling=Sampling(presence_penalty=3)), "sampling.presence_penalty", "3"),
    "frequency": (
        ask(sampling=Sampling(frequency_penalty=-INF)),
        "sampling.frequency_penalty",
        "-inf",
    ),
    "repetition": (ask(sampling=Sampling(repetition_penalty=0)), "sampling.repetition_penalty", ""),
    "cache mode": (ask(cache=Cache(mode=77)), "cache.mode", "77 is no CacheMode"),  # type: ignore[arg-type]
    "similarity": (
        ask(cache=Cache(min_similarity=1.5)),
        "cache.min_similarity",
        "1.5; may be 0 to 1",
    ),
    "negative age": (
        ask(cache=Cache(max_age=duration_pb2.Duration(seconds=-1))),
        "cache.max_age",
        "negative",
    ),
    "negative ttl": (
        ask(cache=Cache(ttl=duration_pb2.Duration(seconds=-1))),
        "cache.ttl",
        "negative",
    ),
    "namespace": (ask(cache=Cache(namespace="n" * 129)), "cache.namespace", "129 bytes"),
    "tags": (ask(cache=Cache(tags=["t"] * 17)), "cache.tags", "17 tags"),
    "large prompt": (chat(("user", "x" * (1 << 20))), "prompt", "at most 1048576"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_a_bad_field_is_named(raw: Raw, case: str) -> None:
    """INVALID_ARGUMENT with BadRequest: which field, what it was, what it may be."""
    request, field, problem = INVALID[case]
    error = await raw.refusal(request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an aio error is a Call too
    bad = error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == field
    assert problem in bad.field_violations[0].description
    await raw.is_well()


async def test_an_unknown_adapter_is_named(raw: Raw) -> None:
    """NOT_FOUND says which adapters there are."""
    error = await raw.refusal(ask(adapter="lora"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "'lora' is not served; there are: none" in (error.details() or "")


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ((), "no credentials"),
        ((("authorization", "Bearer wrong"),), "unknown API key"),
        ((("authorization", "Basic abc"),), "must read 'Bearer <key>'"),
    ],
    ids=["none", "wrong", "scheme"],
)
async def test_wrong_credentials_are_refused_everywhere(
    raw: Raw, metadata: Any, problem: str
) -> None:
    """Every method of the router fails closed."""
    assert (await raw.refusal(ask(), metadata)).code() is grpc.StatusCode.UNAUTHENTICATED
    admin = admin_pb2_grpc.AdminServiceStub(raw.channel)
    calls: list[Any] = [
        raw.stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
        raw.stub.Tokenize(pb.TokenizeRequest(text="x"), metadata=metadata),
        admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata),
        admin.SetCordon(admin_pb2.SetCordonRequest(worker="w1"), metadata=metadata),
        admin.GetCacheStats(admin_pb2.GetCacheStatsRequest(), metadata=metadata),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert problem in (refused.value.details() or "")
    attach = raw.stub.Attach(pb.AttachRequest(), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await attach.read()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_ordinary_key_does_not_steer(raw: Raw) -> None:
    """Admin calls need an admin's key, and change nothing without one."""
    admin = admin_pb2_grpc.AdminServiceStub(raw.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.SetCordon(
            admin_pb2.SetCordonRequest(worker="w1", cordoned=True), metadata=CREDENTIALS
        )
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await raw.is_well()


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\xff\xff\xff\xff", "malformed bytes"),
        (b"\x0a\x02\xc3\x28", "UTF-8"),  # field 1, model, is no UTF-8
        (b"\x12\xff\x01abc", "malformed bytes"),  # a length past the end
    ],
    ids=["bytes", "utf-8", "truncated"],
)
async def test_bytes_that_are_no_request(raw: Raw, message: bytes, problem: str) -> None:
    """What does not parse is the caller's mistake, and told as one."""
    send: Any = raw.channel.unary_stream(GENERATE)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(message, metadata=CREDENTIALS).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in (refused.value.details() or "")
    await raw.is_well()


async def test_a_message_of_64_mib(raw: Raw) -> None:
    """It is refused by its length, before it is parsed."""
    error = await raw.refusal(pb.GenerateRequest(text="x" * (64 << 20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")
    await raw.is_well()


async def test_an_expired_deadline(raw: Raw) -> None:
    """Nothing is done for a caller whose time is up."""
    error = await raw.refusal(ask(), timeout_s=-1.0)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await raw.is_well()


async def test_tokenize_refuses_what_generate_would(raw: Raw) -> None:
    """An empty prompt and an unknown role are named here, too."""
    stub = raw.stub
    for request, problem in (
        (pb.TokenizeRequest(), "set text or chat"),
        (
            pb.TokenizeRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="x", content="y")])),
            "may be system",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Tokenize(request, metadata=CREDENTIALS)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert problem in (refused.value.details() or "")


async def test_a_busy_port(tmp_path: Path) -> None:
    """A second router on one port is told which, and the first goes on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = RouterSettings(
            server=ServerSettings(listen=f"127.0.0.1:{port}"),
            keys_file=write_keys(tmp_path / "keys.toml"),
        )
        with pytest.raises(SetupError, match=str(port)):
            async with serve(settings, quiet_telemetry("sidecache-router")):
                pass


async def test_no_credentials_beyond_loopback() -> None:
    """An open door is for this machine only."""
    settings = RouterSettings(server=ServerSettings(listen="0.0.0.0:0"), insecure=True)
    with pytest.raises(SetupError, match="loopback or a Unix socket only"):
        async with serve(settings, quiet_telemetry("sidecache-router")):
            pass


@pytest.mark.parametrize("fields", [{}, {"insecure": True, "keys_file": "keys.toml"}])
def test_the_way_in_must_be_said(fields: dict[str, Any]) -> None:
    """Neither no door nor two doors: the settings say so."""
    with pytest.raises(ValueError, match="either keys_file or insecure=true"):
        RouterSettings(**fields)


async def test_a_changed_keys_file_takes_effect(tmp_path: Path) -> None:
    """A key that was removed is refused, a bad edit keeps the old ones."""
    async with scripted_stack(tmp_path, router_={"keys_interval_s": 0.01}) as stack:
        assert await stack.client.models()
        stack.keys_file.write_text("not toml [")
        for _ in range(20):
            assert await stack.client.models()
        stack.keys_file.write_text("")
        with pytest.raises(Exception, match="unknown API key"):
            while True:
                await stack.client.models()
