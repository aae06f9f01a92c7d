"""Workers come and go while the router runs, by a file that lists them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_token
from sidecache.client import CacheControl, SidecacheClient
from sidecache.errors import EngineFailed, ModelNotFound
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack, scripted_worker

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
SLOW = {"scripted": {"tokens_per_s": 100.0}}
FAST_LOOK = {"file_interval_s": 0.02}


def write_list(path: Path, addresses: Sequence[str]) -> None:
    """Replace the list at once, as an operator's tool does."""
    scratch = path.with_suffix(".new")
    scratch.write_text("".join(f"{address}\n" for address in addresses))
    scratch.replace(path)


@asynccontextmanager
async def listed_stack(
    folder: Path, path: Path, leave_grace_s: float = 60.0
) -> AsyncIterator[Stack]:
    """A router that knows its workers from a file only."""
    settings = {
        "workers": [f"file:{path}"],
        "pool": FAST_LOOK | {"leave_grace_s": leave_grace_s},
    }
    async with scripted_stack(folder, workers=[], with_cache=False, router_=settings) as stack:
        yield stack


async def served_by(client: SidecacheClient, workers: set[str]) -> None:
    """Return once these workers, and no others, serve what is asked, bounded."""
    async with asyncio.timeout(5):
        while {
            (await client.complete(f"{n}", max_tokens=1, cache=BYPASS)).worker for n in range(6)
        } != workers:
            await asyncio.sleep(0.01)


async def test_a_worker_joins_and_leaves_by_the_file(tmp_path: Path) -> None:
    """A new line is a new worker; a line less is no new stream there; no restart."""
    path = tmp_path / "workers"
    async with scripted_worker("w1") as one, scripted_worker("w2") as two:
        write_list(path, [one.server.address])
        async with listed_stack(tmp_path, path) as stack:
            await served_by(stack.client, {"w1"})
            write_list(path, [one.server.address, two.server.address])
            await served_by(stack.client, {"w1", "w2"})
            write_list(path, [two.server.address])
            await served_by(stack.client, {"w2"})


async def test_a_stream_outlives_its_workers_leaving(tmp_path: Path) -> None:
    """A worker that leaves the list finishes what it runs, token for token."""
    path = tmp_path / "workers"
    async with scripted_worker("w1", **SLOW) as one, scripted_worker("w2") as two:
        write_list(path, [one.server.address])
        async with listed_stack(tmp_path, path) as stack:
            async with stack.client.generate("x", max_tokens=60) as stream:
                events = aiter(stream)
                await anext(events)
                write_list(path, [two.server.address])
                await served_by(stack.client, {"w2"})
                ids = [i async for event in events for i in event.delta.token_ids]
            seed = prompt_seed(await stack.client.tokenize("x"))
            assert ids == [scripted_token(seed, position) for position in range(60)][-len(ids) :]
            assert len(ids) >= 58


async def test_a_worker_may_change_its_mind_about_leaving(tmp_path: Path) -> None:
    """Back on the list before its last stream has ended, it is used again as it is."""
    path = tmp_path / "workers"
    async with scripted_worker("w1", **SLOW) as one, scripted_worker("w2") as two:
        write_list(path, [one.server.address])
        async with (
            listed_stack(tmp_path, path) as stack,
            stack.client.generate("x", max_tokens=200) as stream,
        ):
            await anext(aiter(stream))
            write_list(path, [two.server.address])
            await served_by(stack.client, {"w2"})
            write_list(path, [one.server.address])
            await served_by(stack.client, {"w1"})


async def test_a_worker_lost_after_its_grace_loses_no_stream(tmp_path: Path) -> None:
    """Forgotten already, it is as lost as any other: its stream goes on elsewhere."""
    path = tmp_path / "workers"
    async with scripted_worker("w1", **SLOW) as one, scripted_worker("w2", **SLOW) as two:
        write_list(path, [one.server.address])
        async with listed_stack(tmp_path, path, leave_grace_s=0.05) as stack:
            async with stack.client.generate("x", max_tokens=200) as stream:
                events = aiter(stream)
                ids = list((await anext(events)).delta.token_ids)
                write_list(path, [two.server.address])
                async with stack.connect("operator") as operator, asyncio.timeout(5):
                    while [worker.worker for worker in await operator.workers()] != ["w2"]:
                        await asyncio.sleep(0.01)
                await one.server.drain(0)
                ids += [i async for event in events for i in event.delta.token_ids]
            seed = prompt_seed(await stack.client.tokenize("x"))
            assert ids == [scripted_token(seed, position) for position in range(200)]


async def test_a_bad_list_leaves_the_fleet_as_it_is(tmp_path: Path) -> None:
    """A torn, wrong or missing file costs nobody a worker."""
    path = tmp_path / "workers"
    async with scripted_worker("w1") as one:
        write_list(path, [one.server.address])
        async with listed_stack(tmp_path, path) as stack:
            for content in (b"127.0.0.1:70", b"nonsense\n", b"\xff\n"):
                path.write_bytes(content)
                await asyncio.sleep(0.1)
                assert (await stack.client.complete("a", max_tokens=2)).worker == "w1"
            path.unlink()
            await asyncio.sleep(0.1)
            assert (await stack.client.complete("b", max_tokens=2)).worker == "w1"


async def test_a_worker_that_has_another_model_by_now_is_no_callers_fault(tmp_path: Path) -> None:
    """Another one answers; where there is none, the caller may come again."""

    def elsewhere(_request: object) -> Any:
        raise ModelNotFound("not served here", kind="model", name="scripted")

    async with scripted_stack(tmp_path, workers=[{}, {}], with_cache=False) as stack:
        stack.workers[0].engine.submit = elsewhere  # type: ignore[method-assign,assignment]
        for number in range(6):
            assert (await stack.client.complete(f"{number}", max_tokens=2)).token_ids
        stack.workers[1].engine.submit = elsewhere  # type: ignore[method-assign,assignment]
        with pytest.raises(EngineFailed):
            await stack.client.complete("hello", max_tokens=2)
