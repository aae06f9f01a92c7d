"""Any message and any bytes at the sidecar and at the router's door: never INTERNAL, never down."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecache.v1 import admin_pb2, cache_pb2, inference_pb2
from tests.fixtures.cache import answer_of, open_sidecar, wire_key
from tests.fixtures.protobufs import broken_bytes, messages
from tests.fixtures.stack import KEYS, scripted_stack

CACHE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]
ROUTER = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
)
_KEY = wire_key("What is the capital of France?")
_ASKED = inference_pb2.GenerateRequest(
    chat=inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="hello")]),
    max_tokens=3,
)
GOOD = {
    "Lookup": cache_pb2.LookupRequest(key=_KEY).SerializeToString(),
    "Explain": cache_pb2.ExplainRequest(key=_KEY).SerializeToString(),
    "Store": cache_pb2.StoreRequest(
        entries=[cache_pb2.StoreEntry(key=_KEY, answer=answer_of("Paris"))]
    ).SerializeToString(),
    "Invalidate": cache_pb2.InvalidateRequest(tenant="acme").SerializeToString(),
    "Feedback": cache_pb2.FeedbackRequest(tenant="acme", wrong=True).SerializeToString(),
    "Generate": _ASKED.SerializeToString(),
    "ExplainCache": admin_pb2.ExplainCacheRequest(request=_ASKED).SerializeToString(),
}
_EXAMPLES = settings(
    max_examples=250,
    deadline=None,
    # What a failing message is matters more than the smallest one.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def calls(
    *services: descriptor.ServiceDescriptor,
) -> st.SearchStrategy[tuple[descriptor.MethodDescriptor, bytes]]:
    """Any method with the bytes of any message of its, or of none."""
    methods = [method for service in services for method in service.methods]

    def of(
        method: descriptor.MethodDescriptor,
    ) -> st.SearchStrategy[tuple[descriptor.MethodDescriptor, bytes]]:
        anything = messages(method.input_type).map(lambda made: made.SerializeToString())
        # Bytes of two messages in a row are one message with the fields of both: one that
        # would be served, with something odd about it.
        nearly_good = anything.map(GOOD.get(method.name, b"").__add__)
        return st.tuples(st.just(method), nearly_good | anything | broken_bytes(method.input_type))

    return st.sampled_from(methods).flatmap(of)


async def send(
    channel: grpc.aio.Channel, method: descriptor.MethodDescriptor, raw: bytes, metadata: Any = ()
) -> grpc.StatusCode:
    """The status that a call with these bytes ends in."""
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            stream: Any = channel.unary_stream(path)
            async for _ in stream(raw, metadata=metadata, timeout=5):
                pass
        else:
            call: Any = channel.unary_unary(path)
            await call(raw, metadata=metadata, timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


Target = tuple[grpc.aio.Channel, Callable[[], Awaitable[Any]]]


@asynccontextmanager
async def sidecar(folder: Path, minilm: Path) -> AsyncIterator[Target]:
    """A sidecar, and what shows that it goes on."""
    async with (
        open_sidecar(
            folder,
            semantic={"embedder_path": minilm, "budget_s": 30},
            max_bytes=1 << 20,
            max_answer_bytes=1 << 16,
        ) as sidecar,
        grpc.aio.insecure_channel(f"unix:{folder}/cache.sock") as channel,
    ):

        async def is_well() -> None:
            await sidecar.store("still there?", "yes")
            assert (await sidecar.lookup("still there?")).HasField("hit")

        yield channel, is_well


@asynccontextmanager
async def router(folder: Path, _minilm: Path) -> AsyncIterator[Target]:
    """A router with its worker and sidecar, and what shows that it goes on."""
    async with (
        scripted_stack(folder) as stack,
        grpc.aio.insecure_channel(stack.router.address) as channel,
    ):
        yield channel, lambda: stack.client.complete("still there?", max_tokens=3)


KEYRING = [(("authorization", f"Bearer {KEYS[tenant]}"),) for tenant in ("acme", "operator")]


@pytest.mark.parametrize(
    ("serve", "services", "metadata"),
    [(sidecar, (CACHE,), [()]), (router, ROUTER, KEYRING)],
    ids=["sidecar", "router"],
)
def test_any_message_is_served_or_refused(
    tmp_path: Path, minilm_path: Path, serve: Any, services: Any, metadata: Any
) -> None:
    """Whatever comes, the service answers it with a status that is no bug, and goes on."""
    seen: set[grpc.StatusCode] = set()
    # Hypothesis is synchronous: servers and examples share one loop that it drives.
    with asyncio.Runner() as loop:
        running = serve(tmp_path, minilm_path)
        channel, is_well = loop.run(running.__aenter__())
        try:

            @_EXAMPLES
            @given(calls(*services), st.sampled_from(metadata))
            def check(call: tuple[descriptor.MethodDescriptor, bytes], who: Any) -> None:
                method, raw = call
                code = loop.run(send(channel, method, raw, who))
                seen.add(code)
                assert code not in BUGS, (method.full_name, raw)

            check()
            loop.run(is_well())
        finally:
            loop.run(running.__aexit__(None, None, None))
    assert seen >= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
