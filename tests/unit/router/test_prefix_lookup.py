"""What a router asks about a prompt, and what it believes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from router.cache_client import CacheClient, Miss
from router.prefix import PrefixHint
from router.settings import LookupSettings
from router.ticket import Ticket
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.bare_cache import bare_cache
from tests.unit.router.test_cache_client import ticket
from tests.unit.router.test_tape import MODEL


class Hinting(cache_pb2_grpc.CacheServiceServicer):
    """Misses with a hint."""

    def __init__(self) -> None:
        self.asked: list[cache_pb2.LookupRequest] = []
        self.hint = cache_pb2.PrefixHint(block_size=1, prompt_blocks=2)
        self.hint.held.add(worker="a", blocks=2)
        self.hangs = False

    async def Lookup(self, request: Any, context: Any) -> cache_pb2.LookupResponse:
        self.asked.append(request)
        if self.hangs:
            await asyncio.Event().wait()
        miss = cache_pb2.CacheMiss(reason=cache_pb2.MISS_REASON_ABSENT, prefix=self.hint)
        return cache_pb2.LookupResponse(miss=miss)

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("a lookup asks for nothing else")

    Store = Invalidate = Feedback = SetWorkers = GetStats = Explain = _unused
    HoldFlights = AwaitFlight = _unused


@asynccontextmanager
async def client_of(sidecar: Hinting, *, wants_hint: bool = True) -> AsyncIterator[CacheClient]:
    clock = asyncio.get_running_loop().time
    async with bare_cache(sidecar) as address, grpc.aio.insecure_channel(address) as channel:
        settings = LookupSettings(lookup_timeout_s=0.5)
        yield CacheClient(channel, settings, clock, lambda _: wants_hint)


def unasked(**fields: Any) -> Ticket:
    """A ticket that neither asks nor fills the cache."""
    request = pb.GenerateRequest(max_tokens=1, n=1, **fields)
    return replace(ticket("", 10.0), request=request, key=None, may_look_up=False)


async def test_the_prompt_goes_along_and_the_hint_comes_back() -> None:
    """With model, revision, adapter and the tenant's salt."""
    sidecar = Hinting()
    async with client_of(sidecar) as client:
        asking = ticket("", 10.0)
        asking.request.adapter, asking.request.cache_salt = "ad", "salt"
        outcome = await client.lookup(asking)
        assert isinstance(outcome, Miss)
        assert outcome.reason == "absent"
        assert outcome.prefix is not None
        hint = replace(outcome.prefix, prompt_token_ids=())
        assert hint == PrefixHint(block_size=1, prompt_blocks=2, held={"a": 2})
        expected = cache_pb2.PrefixQuery(
            text="x",
            model=MODEL.name,
            model_revision=MODEL.revision,
            adapter="ad",
            cache_salt="salt",
        )
        assert sidecar.asked[0].prefix == expected
        assert sidecar.asked[0].HasField("key")


async def test_without_a_choice_of_workers_no_prompt_is_sent() -> None:
    """A prompt twice over the wire costs something; a hint nobody asked for is not used."""
    sidecar = Hinting()
    async with client_of(sidecar, wants_hint=False) as client:
        assert await client.lookup(ticket("", 10.0)) == Miss("absent")
        assert not sidecar.asked[0].HasField("prefix")
        assert await client.lookup(unasked(text="x")) == Miss("not_asked")
        assert len(sidecar.asked) == 1


async def test_requests_that_bypass_the_cache_get_a_hint_and_no_answer() -> None:
    """No key is sent, so nothing stored can come back."""
    sidecar = Hinting()
    async with client_of(sidecar) as client:
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
        for prompt in ({"chat": chat}, {"token_ids": pb.TokenIds(ids=[1, 2])}):
            outcome = await client.lookup(unasked(**prompt))
            assert isinstance(outcome, Miss)
            assert outcome.reason == "not_asked"
            assert outcome.prefix is not None
        assert not any(asked.HasField("key") for asked in sidecar.asked)
        assert [asked.prefix.WhichOneof("prompt") for asked in sidecar.asked] == [
            "chat",
            "token_ids",
        ]


async def test_a_request_for_stored_answers_alone_needs_no_hint() -> None:
    """It goes to no worker."""
    sidecar = Hinting()
    async with client_of(sidecar) as client:
        asking = ticket("", 10.0)
        asking.request.cache.mode = pb.CACHE_MODE_ONLY_IF_CACHED
        assert await client.lookup(asking) == Miss("absent")
        assert not sidecar.asked[0].HasField("prefix")


async def test_a_hint_that_cannot_be_true_is_dropped() -> None:
    """The miss is none the worse for it."""
    sidecar = Hinting()
    sidecar.hint.prompt_blocks = 1 << 31
    async with client_of(sidecar) as client:
        assert await client.lookup(ticket("", 10.0)) == Miss("absent")


async def test_a_hint_never_outlasts_the_lookups_deadline() -> None:
    """A sidecar that hangs costs its time and no more."""
    sidecar = Hinting()
    sidecar.hangs = True
    async with client_of(sidecar) as client:
        assert await client.lookup(unasked(text="x")) == Miss("not_asked")
