"""A sidecar at the other end of the link that hangs, dies and comes back."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from chaos.process import ServiceProcess
from sidecache.client import SidecacheClient, Source
from tests.fixtures.stack import Stack, scripted_stack

PROMPT, TOKENS = "hello", 8


@asynccontextmanager
async def sidecar(folder: Path) -> AsyncIterator[ServiceProcess]:
    """A process on a Unix socket, with its semantic tier off."""
    settings = {"server__listen": f"unix:{folder}/cache.sock", "semantic__enabled": "false"}
    async with ServiceProcess.start("cache_svc", folder, settings) as process:
        yield process


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Stack]:
    """A router that knows where its sidecar is to be, and lets it try again soon."""
    lookup = {"open_s": 0.05, "lookup_timeout_s": 0.5}
    settings = {
        "cache": f"unix:{folder}/cache.sock",
        "lookup": lookup,
        # Or an ended stream would answer in the sidecar's place.
        "flights": {"linger_s": 0},
    }
    async with scripted_stack(folder, with_cache=False, router_=settings) as stack:
        yield stack


async def ask(client: SidecacheClient) -> Source:
    answer = await client.complete(PROMPT, max_tokens=TOKENS)
    assert len(answer.token_ids) == TOKENS
    return answer.source


async def until_hit(client: SidecacheClient) -> None:
    """Each request is answered, and in the end from the cache; the test's own time bounds it."""
    while await ask(client) is not Source.EXACT:
        pass


@pytest.mark.timeout(60)
async def test_a_sidecar_that_hangs_costs_its_deadline_and_comes_back(tmp_path: Path) -> None:
    """Every request is answered meanwhile; the answers it kept are found again after."""
    async with sidecar(tmp_path) as process, fleet(tmp_path) as stack:
        await until_hit(stack.client)
        process.hang()
        assert await process.is_hung()
        assert [await ask(stack.client) for _ in range(8)] == [Source.ENGINE] * 8
        process.resume()
        await until_hit(stack.client)


@pytest.mark.timeout(60)
async def test_a_sidecar_that_dies_is_missed_and_its_successor_found(tmp_path: Path) -> None:
    """A killed one leaves its socket behind; the next one takes it, and the link with it."""
    async with AsyncExitStack() as first:
        process = await first.enter_async_context(sidecar(tmp_path))
        async with fleet(tmp_path) as stack:
            await until_hit(stack.client)
            await process.kill()
            assert await ask(stack.client) is Source.ENGINE
            assert (tmp_path / "cache.sock.link").exists()
            async with sidecar(tmp_path):
                await until_hit(stack.client)
