"""What the bound on false hits has learnt, through SIGKILL and a second process."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from cache_svc.durable.folder import DATABASE
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import Sidecar, answer_of, wire_key
from tests.integration.test_cache_restart import process

LANDS = [
    "France", "Spain", "Italy", "Norway", "Sweden", "Finland", "Poland", "Austria", "Hungary",
    "Greece", "Turkey", "Egypt", "Kenya", "Ghana", "Nigeria", "Morocco", "Peru", "Chile", "Brazil",
    "Mexico", "Canada", "Cuba", "Japan", "Thailand", "Vietnam", "Nepal", "India", "Iran", "Iraq",
    "Jordan", "Qatar", "Oman", "Latvia", "Estonia", "Ireland", "Portugal", "Belgium", "Denmark",
]  # fmt: skip
ASKED, AGAIN = "What is the capital of {}?", "What's the capital city of {}?"


def settings(minilm_path: Path, **more: str) -> dict[str, str]:
    """A bound that audits every hit, and sees each candidate alone."""
    return {
        "semantic__embedder_path": str(minilm_path),
        "semantic__budget_s": "30",
        "semantic__neighbors": "1",
        "semantic__bound__company": "1",
        "semantic__bound__audit_share": "1",
        "semantic__bound__max_false_hit_rate": "0.1",
        "semantic__bound__trusted_false_hits": "1000",
        "store__learnt_interval_s": "0.01",
        **more,
    }


async def teach(sidecar: Sidecar, lands: Sequence[str], *, right: bool) -> None:
    """Ask for each land in two ways; the second answer agrees with the first, or does not."""
    for land in lands:
        first = f"The capital of {land} lies in {land}."
        await sidecar.store(ASKED.format(land), first)
        found = await sidecar.lookup(AGAIN.format(land))
        audits = found.hit.entry_id if found.HasField("hit") else ""
        assert found.hit.audit or found.miss.explored_entry_id, found
        second = first if right else "Bananas are rich in potassium and are eaten raw."
        entry = cache_pb2.StoreEntry(
            key=wire_key(AGAIN.format(land)), answer=answer_of(second), audits_entry_id=audits
        )
        await sidecar.stub.Store(cache_pb2.StoreRequest(entries=[entry]))


async def verdict_on(sidecar: Sidecar, land: str) -> str:
    explained = await sidecar.explain(AGAIN.format(land))
    return explained.candidates[0].verdict


def risk(verdict: str) -> float:
    return float(verdict.partition("risk ")[2].split()[0])


async def until_written(folder: Path, query: str, *, least: int) -> None:
    """Wait until the database, read beside its owner, holds so many."""
    async with asyncio.timeout(20):
        while True:
            database = sqlite3.connect(folder / "store" / DATABASE)
            (count,) = database.execute(query).fetchone()
            database.close()
            if count is not None and count >= least:
                return
            await asyncio.sleep(0.02)


async def test_a_scope_does_not_start_cold(tmp_path: Path, minilm_path: Path) -> None:
    """After SIGKILL a candidate has the risk it had; under another judge it starts anew."""
    known = settings(minilm_path)
    async with process(tmp_path, **known) as (service, sidecar):
        await sidecar.store(ASKED.format("Iceland"), "Reykjavik")
        cold = await verdict_on(sidecar, "Iceland")
        await teach(sidecar, LANDS[:12], right=True)
        # Every answer has a sense, those that were found again a record.
        await until_written(tmp_path, "SELECT count(*) FROM judgements", least=25)
        await until_written(tmp_path, "SELECT sum(right) FROM judgements", least=12)
        await until_written(tmp_path, "SELECT count(*) FROM bounds", least=1)
        warm = await verdict_on(sidecar, "Iceland")
        assert risk(warm) < risk(cold) - 0.05
        await service.kill()
    async with process(tmp_path, **known) as (_, sidecar):
        # Planned anew at the start, where the other process had not come to its next plan.
        assert risk(await until_compared(sidecar, "Iceland")) <= risk(warm)
    other = settings(minilm_path, semantic__bound__judge_min_similarity="0.9")
    async with process(tmp_path, **other) as (_, sidecar):
        assert await until_compared(sidecar, "Iceland") == cold


async def until_compared(sidecar: Sidecar, land: str) -> str:
    """The verdict once the vectors are back."""
    async with asyncio.timeout(20):
        while not (await sidecar.explain(AGAIN.format(land))).candidates:
            await asyncio.sleep(0.01)
    return await verdict_on(sidecar, land)


async def test_an_alarm_outlives_its_process(tmp_path: Path, minilm_path: Path) -> None:
    """A scope that fell back to exact hits does so after SIGKILL, without one more wrong hit."""
    known = settings(minilm_path)
    async with process(tmp_path, **known) as (service, sidecar):
        await sidecar.store(ASKED.format("Iceland"), "Reykjavik")
        await teach(sidecar, LANDS[:20], right=True)
        await teach(sidecar, LANDS[20:38], right=False)
        async with asyncio.timeout(20):
            while not (await sidecar.stats()).bound_alarms:
                await asyncio.sleep(0.01)
        # Written at once: that its commit was made is all there is to wait for.
        alarmed = "SELECT count(*) FROM bounds WHERE instr(state, '\"exact_only\":true')"
        await until_written(tmp_path, alarmed, least=1)
        await service.kill()
    async with process(tmp_path, **known) as (_, sidecar):
        assert "exact hits only" in await until_compared(sidecar, "Iceland")
        found = await sidecar.lookup(AGAIN.format("Iceland"))
        assert found.miss.reason == cache_pb2.MISS_REASON_EXPLORED
        exact = await sidecar.lookup(ASKED.format("Iceland"))
        assert exact.hit.tier == cache_pb2.TIER_EXACT
        # The same alarm, not a new one.
        assert (await sidecar.stats()).bound_alarms == 0
