"""Two routers with one sidecar share one generation, and neither depends on the other."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import router.serve
import router.settings
from observability.server import RunningServer
from observability.settings import ServerSettings
from sidecache.client import SidecacheClient, Source
from sidecache.errors import from_rpc_error
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import (
    KEYS,
    Worker,
    cache_sidecar,
    quiet_telemetry,
    scripted_worker,
    write_keys,
)
from tests.integration.test_router_flights import PACED, busy, eventually, reference, stub

TOKENS = 100


@dataclass
class Pair:
    """Two routers, one worker, one sidecar."""

    worker: Worker
    servers: list[RunningServer]
    clients: list[SidecacheClient]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def two_routers(
    folder: Path, *, first_advertises: str = "", keys: tuple[str, str] = ("k" * 32, "k" * 32)
) -> AsyncIterator[Pair]:
    """Each says where others reach it; the first one may lie."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(scripted_worker("w1", **PACED))
        cache = await stack.enter_async_context(cache_sidecar(folder))
        servers, clients = [], []
        for number, key in enumerate(keys):
            (folder / f"mesh{number}").write_text(key)
            address = free_address()
            settings = router.settings.RouterSettings(
                server=ServerSettings(listen=address),
                workers=[worker.server.address],
                cache=cache.address,
                keys_file=write_keys(folder / "keys.toml"),
                flights=router.settings.FlightSettings(
                    advertise=(not number and first_advertises) or address,
                    mesh_key_file=folder / f"mesh{number}",
                ),
            )
            telemetry = quiet_telemetry("sidecache-router")
            stack.push_async_callback(telemetry.aclose)
            server = await stack.enter_async_context(router.serve.serve(settings, telemetry))
            servers.append(server)
            client = SidecacheClient(server.address, api_key=KEYS["acme"])
            clients.append(await stack.enter_async_context(client))
        yield Pair(worker, servers, clients)


async def test_two_routers_share_one_generation(tmp_path: Path) -> None:
    """The second router's callers read along at the first, token for token."""
    async with two_routers(tmp_path) as pair:
        first = asyncio.create_task(pair.clients[0].complete("hello", max_tokens=TOKENS))
        await eventually(lambda: busy(pair.worker) == 1)
        crowd = [
            asyncio.create_task(pair.clients[1].complete("hello", max_tokens=TOKENS))
            for _ in range(5)
        ]
        most = 0
        while not first.done():
            most = max(most, busy(pair.worker))
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(first, *crowd)
        assert most == 1
        ids = await reference(pair.clients[0], "hello", TOKENS)
        assert all(answer.token_ids == ids for answer in answers)
        assert [a.source for a in answers] == [Source.ENGINE, *[Source.COALESCED] * 5]
        assert len({answer.request_id for answer in answers}) == 6


async def test_a_router_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    """A dead leader's lease costs a moment, never an answer."""
    async with two_routers(tmp_path, first_advertises=free_address()) as pair:
        first = asyncio.create_task(pair.clients[0].complete("hello", max_tokens=TOKENS))
        await eventually(lambda: busy(pair.worker) == 1)
        answer = await pair.clients[1].complete("hello", max_tokens=TOKENS)
        assert answer.source is Source.ENGINE
        assert answer.token_ids == (await first).token_ids


async def test_a_leader_that_dies_in_the_middle_is_continued(tmp_path: Path) -> None:
    """The second router goes on from the very next token."""
    async with two_routers(tmp_path) as pair:
        first = asyncio.create_task(pair.clients[0].complete("hello", max_tokens=TOKENS))
        await eventually(lambda: busy(pair.worker) == 1)
        async with pair.clients[1].generate("hello", max_tokens=TOKENS) as stream:
            ids: list[int] = []
            async for event in stream:
                ids += event.delta.token_ids
                if len(ids) == 30:
                    await pair.servers[0].drain(0)
        await asyncio.gather(first, return_exceptions=True)
        assert ids == await reference(pair.clients[1], "hello", TOKENS)


async def test_routers_with_different_keys_share_nothing(tmp_path: Path) -> None:
    """A wrong mesh key is refused, and the caller gets his own generation."""
    async with two_routers(tmp_path, keys=("k" * 32, "x" * 32)) as pair:
        first = asyncio.create_task(pair.clients[0].complete("hello", max_tokens=TOKENS))
        await eventually(lambda: busy(pair.worker) == 1)
        answer = await pair.clients[1].complete("hello", max_tokens=TOKENS)
        assert answer.source is Source.ENGINE
        assert answer.token_ids == (await first).token_ids


@pytest.mark.parametrize("tenant", ["umbrella", ""])
async def test_a_tenant_cannot_pose_as_a_router(tmp_path: Path, tenant: str) -> None:
    """Mesh metadata without the key is refused, whatever else is right."""
    async with two_routers(tmp_path) as pair:
        asked = pb.AttachRequest(request_id="whatever")
        metadata = (
            ("authorization", f"Bearer {KEYS['umbrella']}"),
            ("x-sidecache-mesh-key", "guess" * 8),
            ("x-sidecache-mesh-tenant", tenant),
        )
        async with grpc.aio.insecure_channel(pair.servers[0].address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub(channel).Attach(asked, metadata=metadata).read()
        assert "unknown mesh key" in from_rpc_error(refused.value).text
