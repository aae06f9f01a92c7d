"""A client whose connection breaks goes on by itself, over a proxy that breaks it for real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chaos.faults import Down
from chaos.proxy import FaultProxy
from sidecache.client import SidecacheClient, Source
from sidecache.errors import InvalidRequest, NotFound, Unavailable
from tests.fixtures.stack import KEYS, Stack, scripted_stack
from tests.integration.test_router_flights import PACED, busy, eventually, reference

TOKENS = 120


@asynccontextmanager
async def broken_line(
    folder: Path, **settings: Any
) -> AsyncIterator[tuple[Stack, FaultProxy, SidecacheClient]]:
    """A stack, and a client that reaches it through a proxy."""
    async with (
        scripted_stack(folder, workers=[PACED], **settings) as stack,
        FaultProxy.open(stack.router.address) as proxy,
        SidecacheClient(proxy.address, api_key=KEYS["acme"]) as client,
    ):
        yield stack, proxy, client


async def test_a_stream_goes_on_over_every_break(tmp_path: Path) -> None:
    """Cut four times, it is the uncut answer, token for token, and says how often."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        ids: list[int] = []
        text = ""
        cuts = [10, 30, 50, 70]
        async with client.generate("hello", max_tokens=TOKENS, resume=True) as stream:
            async for event in stream:
                ids += event.delta.token_ids
                text += event.delta.text
                if cuts and len(ids) >= cuts[0]:
                    cuts.pop(0)
                    proxy.cut_all()
            assert stream.resumptions == 4
        whole = await stack.client.complete("hello", max_tokens=TOKENS)
        assert whole.source is Source.EXACT
        assert (ids, text) == (whole.token_ids, whole.text)
        assert ids == await reference(stack.client, "hello", TOKENS)


async def test_it_waits_for_a_router_that_is_away_for_a_moment(tmp_path: Path) -> None:
    """Tries again within the window; the generation goes on meanwhile."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        ids: list[int] = []
        async with client.generate("hello", max_tokens=TOKENS, resume=True) as stream:
            async for event in stream:
                ids += event.delta.token_ids
                if len(ids) == 20:
                    placement = proxy.put_on(Down())
                    asyncio.get_running_loop().call_later(0.2, proxy.take_off, placement)
        assert ids == await reference(stack.client, "hello", TOKENS)


@pytest.mark.parametrize("away", [False, True])
async def test_with_several_routers_it_returns_to_the_one_that_has_it(
    tmp_path: Path, away: bool
) -> None:
    """Though another one answered last, and though that one is away for a moment."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with (
        broken_line(folders[0]) as (stack, proxy, _),
        scripted_stack(folders[1], workers=[PACED]) as other,
        SidecacheClient([proxy.address, other.router.address], api_key=KEYS["acme"]) as client,
    ):
        ids: list[int] = []
        is_cut = False
        async with client.generate("hello", max_tokens=TOKENS, resume=True) as stream:
            async for event in stream:
                ids += event.delta.token_ids
                if len(ids) >= 20 and not is_cut:
                    is_cut, placement = True, proxy.put_on(Down())
                    await client.models()
                    if away:
                        asyncio.get_running_loop().call_later(0.2, proxy.take_off, placement)
                    else:
                        proxy.take_off(placement)
        assert ids == await reference(stack.client, "hello", TOKENS)


async def test_it_gives_up_with_the_first_error(tmp_path: Path) -> None:
    """Past the window the caller hears what broke the connection."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        stream = client.generate("hello", max_tokens=1000, resume=True, attach_window_s=0.3)
        async with stream:
            await anext(aiter(stream))
            proxy.put_on(Down())
            with pytest.raises(Unavailable):
                await stream.complete()
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=3)


async def test_without_resume_a_break_is_an_error(tmp_path: Path) -> None:
    """Nobody's engine slot is kept for a client that did not ask for it."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        async with client.generate("hello", max_tokens=1000) as stream:
            await anext(aiter(stream))
            proxy.cut_all()
            with pytest.raises(Unavailable):
                await stream.complete()
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)


async def test_attach_by_hand(tmp_path: Path) -> None:
    """Another client, another process: request id and offset are all it needs."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        async with client.generate("hello", max_tokens=TOKENS, attach_window_s=5) as stream:
            ids: list[int] = []
            async for event in stream:
                ids += event.delta.token_ids
                if len(ids) >= 10:
                    break
            assert stream.started
            request_id, offset = stream.started.request_id, stream.next_offset
            proxy.cut_all()
        async with stack.client.attach(request_id, offset) as rest:
            ids += (await rest.complete()).token_ids
        assert ids == await reference(stack.client, "hello", TOKENS)
        async with stack.connect("umbrella") as other, other.attach(request_id) as foreign:
            with pytest.raises(NotFound):
                await foreign.complete()


async def test_an_attached_stream_survives_a_break_too(tmp_path: Path) -> None:
    """What attach returns reconnects by itself."""
    async with broken_line(tmp_path) as (stack, proxy, client):
        async with client.generate("hello", max_tokens=TOKENS, attach_window_s=5) as stream:
            await anext(aiter(stream))
            assert stream.started
            request_id = stream.started.request_id
            proxy.cut_all()
        ids: list[int] = []
        async with client.attach(request_id) as again:
            async for event in again:
                ids += event.delta.token_ids
                if again.resumptions == 0 and len(ids) > 20:
                    proxy.cut_all()
        assert again.resumptions
        assert ids == await reference(stack.client, "hello", TOKENS)


async def test_several_choices_are_refused_at_once(tmp_path: Path) -> None:
    """There is one offset, and so one choice."""
    async with broken_line(tmp_path) as (_, _, client):
        with pytest.raises(InvalidRequest, match="2 choices cannot be resumed"):
            client.generate("hello", n=2, resume=True)


async def test_the_span_says_where_it_went_on(tmp_path: Path) -> None:
    """One span for the whole stream, with an event at each break; the offset is no content."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with broken_line(tmp_path) as (_, proxy, _):
        traced = SidecacheClient(proxy.address, api_key=KEYS["acme"], tracer_provider=provider)
        is_cut = False
        async with traced, traced.generate("hello", max_tokens=60, resume=True) as stream:
            async for event in stream:
                # Tokens that came together are one event: none may begin at just this one.
                if event.delta.offset >= 20 and not is_cut:
                    is_cut = True
                    proxy.cut_all()
    (span,) = exporter.get_finished_spans()
    (resumed,) = span.events
    assert resumed.name == "sidecache.resumed"
    assert resumed.attributes
    assert int(str(resumed.attributes["sidecache.offset"])) >= 21
