"""Workers that lie and prompts out of all proportion, through the whole path.

Routing may get worse; answers stay right, and router and sidecar stay as small as they were.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.cpu_time import resident_mb
from benchmarks.gpu_path_front import until_followed
from chaos.process import ServiceProcess
from inference_svc.engine import EngineLoad
from inference_svc.engines.scripted import prompt_seed, scripted_token
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from sidecache.client import CacheControl, SidecacheClient
from sidecache.kv_blocks import BlockHasher
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import KEYS, Worker, scripted_worker, write_keys
from tests.integration.test_prefix_end_to_end import BLOCK_SIZE, BLOCKS, PREFIX, fleet, salt_of

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
GIANT_TOKENS = 1_000_000
# What the index may keep of one worker, at 85 bytes each, and room for the allocator.
MAX_GROWTH_MB = 40.0


def expected(text: str, tokens: int) -> list[int]:
    """What a scripted worker answers."""
    seed = prompt_seed(text.encode())
    return [scripted_token(seed, position) for position in range(tokens)]


async def test_a_false_promise_costs_a_prefill_and_nothing_else(tmp_path: Path) -> None:
    """A worker that claims a prompt it does not hold gets it, computes it, and answers rightly."""
    async with fleet(tmp_path) as f:
        names = BlockHasher(BLOCK_SIZE, salt=salt_of("acme")).hashes([*PREFIX.encode()])
        f.workers["w2"].ledger.record(BlocksStored(tuple(names)))
        await f.until_held({"w2": BLOCKS})
        answer = await f.stack.client.complete(text=PREFIX, max_tokens=8)
        assert answer.worker == "w2"
        assert answer.usage.cached_prompt_tokens == 0
        assert answer.token_ids == expected(PREFIX, 8)


@pytest.mark.parametrize(
    "lie",
    [
        EngineLoad(2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1, 1.0, 1),
        EngineLoad(0, 0, 0, 0, float("nan"), 2**64 - 1),
        EngineLoad(0, 0, 2**32 - 1, 0, -1.0, 0),
    ],
    ids=["overloaded", "nothing at all", "endless slots"],
)
async def test_a_worker_that_lies_about_its_load(tmp_path: Path, lie: EngineLoad) -> None:
    """It is shunned or liked; what is asked is answered, and prefixes still find their holder."""
    quick = {"routing": {"load_interval_s": 0.02}}
    async with fleet(tmp_path, count=2, router_=quick) as f:
        f.workers["w1"].engine.load_figures = lambda: lie  # type: ignore[method-assign]
        async with f.stack.connect("operator") as operator:
            while (await operator.workers())[0].kv_blocks != lie.kv_blocks:
                await asyncio.sleep(0.01)
        await f.put("w2")
        await f.until_held({"w2": BLOCKS})
        for number in range(6):
            text = f"{PREFIX}{number}"
            answer = await f.stack.client.complete(text=text, max_tokens=4)
            assert answer.token_ids == expected(text, 4)
            assert answer.worker == "w2"


@dataclass
class WholePath:
    """Router and sidecar as processes, before workers of this one."""

    router: ServiceProcess
    cache: ServiceProcess
    workers: list[Worker]
    client: SidecacheClient

    def resident(self) -> dict[str, float]:
        """MB of both."""
        return {each.name: resident_mb(each.pid) for each in self._processes()}

    def _processes(self) -> list[ServiceProcess]:
        return [self.router, self.cache]


@asynccontextmanager
async def path(folder: Path) -> AsyncIterator[WholePath]:
    large = {"context_length": 2 * GIANT_TOKENS}
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(scripted_worker(name, scripted=large))
            for name in ("w1", "w2")
        ]
        own = {"server__listen": f"unix:{folder}/cache.sock", "semantic__enabled": "false"}
        start = ServiceProcess.start("cache_svc", folder, own)
        cache = await stack.enter_async_context(start)
        settings = {
            "workers": f'["{workers[0].server.address}", "{workers[1].server.address}"]',
            "cache": cache.address,
            "keys_file": str(write_keys(folder / "keys.toml")),
            "lookup__lookup_timeout_s": "5",
        }
        start = ServiceProcess.start("router", folder, settings)
        router = await stack.enter_async_context(start)
        await until_followed(cache.address, len(workers))
        client = SidecacheClient(router.address, api_key=KEYS["acme"])
        yield WholePath(router, cache, workers, await stack.enter_async_context(client))


def storm(chance: random.Random, names: list[int]) -> list[KvEvent]:
    """Events that contradict one another: repeated, out of nowhere, taken back unheard."""
    parents = [None, 1, *names[:3]]
    many = tuple(chance.getrandbits(64) for _ in range(20_000))
    return [
        BlocksStored(many, chance.choice(parents)),
        BlocksStored(many[:100], chance.choice(parents)),
        BlocksRemoved((chance.getrandbits(64), *many[:10_000:2])),
        BlocksRemoved(many[:50]),
        *([CacheCleared()] if chance.random() < 0.2 else []),
        BlocksStored(tuple(names), chance.getrandbits(64)),
        BlocksRemoved(tuple(names[1:4])),
    ]


async def test_storms_and_giants_change_no_answer_and_no_size(tmp_path: Path) -> None:
    """Contradicting events, a load that is a lie, and prompts of a million tokens."""
    chance = random.Random(5)  # noqa: S311 - repeatable, not secret
    names = BlockHasher(BLOCK_SIZE, salt=salt_of("acme")).hashes([*PREFIX.encode()])
    async with path(tmp_path) as p:
        liar = p.workers[1]
        figures = EngineLoad(0, 0, 2**31, 0, float("nan"), 2**63)
        liar.engine.load_figures = lambda: figures  # type: ignore[method-assign]
        await exchange(p, chance, names, "warm")
        before = p.resident()
        for number in range(3):
            await exchange(p, chance, names, str(number))
        after = p.resident()
        growth = {name: after[name] - before[name] for name in before}
        assert max(growth.values()) < MAX_GROWTH_MB, growth
        assert await blocks(p.cache.address) <= 2 * (1 << 18)


async def exchange(p: WholePath, chance: random.Random, names: list[int], mark: str) -> None:
    """A storm, a giant, and a prompt that the storm was about."""
    for event in storm(chance, names):
        p.workers[1].ledger.record(event)
    giant = f"{mark} " + "word " * ((GIANT_TOKENS - 20) // 5)
    for text in (giant, f"{PREFIX}{mark}", giant):
        answer = await p.client.complete(text=text, max_tokens=3, cache=BYPASS, timeout_s=60)
        assert answer.token_ids == expected(text, 3)


async def blocks(cache: str) -> int:
    """What the sidecar's index holds."""
    async with grpc.aio.insecure_channel(cache) as channel:
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        stats: cache_pb2.GetStatsResponse = await stub.GetStats(cache_pb2.GetStatsRequest())
    return stats.prefix_blocks
