"""A sidecar that was killed and started again over the same folder."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from chaos.process import ServiceProcess
from sidecache.errors import SidecacheError
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from tests.fixtures.cache import Sidecar, TurnedClock, text_of

FRANCE = "What is the capital of France?"
PARAPHRASE = "What's the capital city of France?"
STORM_STREAMS = 8


@asynccontextmanager
async def process(folder: Path, **settings: str) -> AsyncIterator[tuple[ServiceProcess, Sidecar]]:
    """A sidecar process over ``folder/store``, and a caller of it."""
    fields = {"store__path": str(folder / "store"), **settings}
    async with (
        ServiceProcess.start("cache_svc", folder, fields) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        yield service, Sidecar(cache_pb2_grpc.CacheServiceStub(channel), TurnedClock())


async def test_both_tiers_survive_a_kill(tmp_path: Path, minilm_path: Path) -> None:
    """What was stored before SIGKILL is served again, exactly and by meaning, without a call."""
    semantic = {"semantic__embedder_path": str(minilm_path), "semantic__budget_s": "30"}
    async with process(tmp_path, **semantic) as (service, sidecar):
        stored = await sidecar.store(FRANCE, "Paris")
        wrong = await sidecar.store("How do I cancel my subscription?", "You cannot.")
        gone = await sidecar.store("How many grams are in 2 ounces?", "57", tags=["old"])
        feedback = cache_pb2.FeedbackRequest(tenant="acme", entry_id=wrong.entry_id, wrong=True)
        assert (await sidecar.stub.Feedback(feedback)).quarantined
        invalidate = cache_pb2.InvalidateRequest(tenant="acme", tag="old")
        assert (await sidecar.stub.Invalidate(invalidate)).entries == 1
        assert gone.status == cache_pb2.STORE_STATUS_STORED
        await service.kill()
    async with process(tmp_path, **semantic) as (_, sidecar):
        exact = (await sidecar.lookup(FRANCE)).hit
        assert (exact.tier, exact.entry_id) == (cache_pb2.TIER_EXACT, stored.entry_id)
        assert text_of(exact.answer) == "Paris"
        similar = (await sidecar.lookup(PARAPHRASE)).hit
        assert (similar.tier, similar.entry_id) == (cache_pb2.TIER_SEMANTIC, stored.entry_id)
        assert (await sidecar.lookup("How many grams are in 2 ounces?")).HasField("miss")
        again = await sidecar.store("How do I cancel my subscription?", "You cannot.")
        assert again.status == cache_pb2.STORE_STATUS_EXACT_ONLY


async def test_answers_without_a_vector_get_one_after_a_change(
    tmp_path: Path, minilm_path: Path
) -> None:
    """What another embedder (here: none) stored is comparable by meaning a little later."""
    async with process(tmp_path, semantic__enabled="false") as (service, sidecar):
        result = await sidecar.store(FRANCE, "Paris")
        assert result.status == cache_pb2.STORE_STATUS_EXACT_ONLY
        assert await service.terminate() == 0
    semantic = {"semantic__embedder_path": str(minilm_path), "semantic__budget_s": "30"}
    async with process(tmp_path, **semantic) as (_, sidecar), asyncio.timeout(30):
        while not (found := await sidecar.lookup(PARAPHRASE)).HasField("hit"):
            await asyncio.sleep(0.05)
        assert found.hit.tier == cache_pb2.TIER_SEMANTIC
        assert text_of(found.hit.answer) == "Paris"


class Storm:
    """Callers that store and invalidate as fast as they can, and what they were told.

    Attributes:
        acknowledged: the newest version of each prompt that the sidecar confirmed.
        offered: the newest version that was sent.
        dropped: the version up to which an invalidation was confirmed.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.offered: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.dropped: dict[str, int] = {}

    async def blow(self, stream: int) -> None:
        """Store one prompt of this stream after the other, each again and again."""
        for turn in itertools.count():
            text = f"stream {stream} prompt {turn % 20}"
            version = self.offered.get(text, 0) + 1
            self.offered[text] = version
            result = await self.sidecar.store(text, *told(text, version), tags=[text])
            assert result.status == cache_pb2.STORE_STATUS_EXACT_ONLY
            self.acknowledged[text] = version
            if turn % 7 == 0:
                request = cache_pb2.InvalidateRequest(tenant="acme", tag=text)
                self.acknowledged.pop(text)
                await self.sidecar.stub.Invalidate(request)
                self.dropped[text] = version

    async def check(self, sidecar: Sidecar) -> int:
        """Ask for every prompt; returns how many were answered."""
        answered = 0
        for text, offered in self.offered.items():
            response = await sidecar.lookup(text)
            if not response.HasField("hit"):
                assert text not in self.acknowledged, f"{text} was acknowledged and is lost"
                continue
            version = int(response.hit.answer.deltas[0].text)
            assert text_of(response.hit.answer) == "".join(told(text, version))
            oldest = max(self.acknowledged.get(text, 1), self.dropped.get(text, 0) + 1)
            assert oldest <= version <= offered, f"{text}: {oldest} {version} {offered}"
            answered += 1
        return answered


def told(text: str, version: int) -> list[str]:
    """An answer that shows whose it is, whole: version, prompt, and something long."""
    return [str(version), *[f" {text}"] * (1 + version % 50)]


@pytest.mark.parametrize("durability", ["written", "synced"])
async def test_a_storm_of_stores_and_kills(tmp_path: Path, durability: str) -> None:
    """Killed at any moment, it serves what was stored, whole, and keeps what it acknowledged."""
    settings = {
        "semantic__enabled": "false",
        "store__durability": durability,
        "admission__burst": "1000000",
    }
    for round_ in range(3):
        async with process(tmp_path, **settings) as (service, sidecar):
            storm = Storm(sidecar)
            tasks = [asyncio.create_task(storm.blow(stream)) for stream in range(STORM_STREAMS)]
            await asyncio.sleep(0.4 + 0.23 * round_)  # any moment will do
            await service.kill()
            for task in tasks:
                with suppress(grpc.aio.AioRpcError, SidecacheError):
                    await task
        async with process(tmp_path, **settings) as (_, sidecar):
            assert await storm.check(sidecar) > 10
            await sidecar.stub.Invalidate(cache_pb2.InvalidateRequest(tenant="acme", all=True))


async def test_no_second_sidecar_over_one_folder(tmp_path: Path) -> None:
    """A second process over the same folder ends with one clear line; the first goes on."""
    (tmp_path / "second").mkdir()
    off = {"semantic__enabled": "false"}
    async with process(tmp_path, **off) as (_, sidecar):
        with pytest.raises(Exception, match="another sidecar uses"):
            async with process(tmp_path / "second", store__path=str(tmp_path / "store"), **off):
                pass
        assert (await sidecar.store("goes on")).entry_id
