"""A sidecar with a large scope, killed and started again: its index returns, or is built anew."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.real_texts import SHIPPED_TEXTS, read_texts
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import Sidecar
from tests.integration.test_cache_restart import process

TEXTS = read_texts([SHIPPED_TEXTS])[:180]
# A scope beyond 128 vectors is large here, and gets its lists.
SMALL = {
    "semantic__flat_rows": "64",
    "semantic__budget_s": "30",
    "semantic__bound__enabled": "0",
    "semantic__verifier": "rules",
}
ASKED = TEXTS[:40:8]
# For each question the names and similarities of its neighbours.
Found = list[list[tuple[str, float]]]
RETURNED = "vectors are back from index snapshots"


def snapshots(folder: Path) -> list[Path]:
    """The whole generations there are."""
    return [path.parent for path in folder.glob("store/indexes/*/*/manifest.json")]


def log_of(folder: Path) -> str:
    return (folder / "cache_svc.log").read_text()


def settings_of(minilm_path: Path) -> dict[str, str]:
    return {**SMALL, "semantic__embedder_path": str(minilm_path)}


async def neighbours(sidecar: Sidecar) -> Found:
    """What each question is near to, as the sidecar explains it."""
    explained = [await sidecar.explain(f"please, {text}") for text in ASKED]
    return [[(c.entry_id, round(c.similarity, 2)) for c in e.candidates] for e in explained]


async def fill(sidecar: Sidecar) -> None:
    for text in TEXTS:
        assert (await sidecar.store(text)).status == cache_pb2.STORE_STATUS_STORED


async def settled(sidecar: Sidecar, expected: Found) -> None:
    """Vectors come back beside the traffic."""
    async with asyncio.timeout(20):
        while await neighbours(sidecar) != expected:
            await asyncio.sleep(0.05)


async def filled_store(folder: Path, minilm_path: Path) -> Found:
    """Stores everything, waits for a snapshot, kills the sidecar; what it found before."""
    async with process(folder, **settings_of(minilm_path)) as (service, sidecar):
        await fill(sidecar)
        async with asyncio.timeout(20):
            while not snapshots(folder):
                await asyncio.sleep(0.02)
        expected = await neighbours(sidecar)
        await service.kill()
    return expected


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, minilm_path: Path) -> tuple[Path, Found]:
    """The folder of a sidecar that was filled and killed, and what it had found."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, asyncio.run(filled_store(folder, minilm_path))


@pytest.fixture
def expected(filled: tuple[Path, Found], tmp_path: Path) -> Found:
    """What the sidecar had found whose store now lies in ``tmp_path``."""
    shutil.copytree(filled[0] / "store", tmp_path / "store")
    return filled[1]


async def test_a_restart_goes_on_from_the_snapshot(
    expected: Found, tmp_path: Path, minilm_path: Path
) -> None:
    """After SIGKILL the large scope's index is loaded, and finds what it found before."""
    async with process(tmp_path, **settings_of(minilm_path)) as (_, sidecar):
        await settled(sidecar, expected)
        assert RETURNED in log_of(tmp_path)


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda generation: _damage(generation / "index.faiss"),
        lambda generation: (generation / "index.faiss").write_bytes(b""),
        lambda generation: (generation / "manifest.json").unlink(),
    ],
    ids=["flipped bit", "truncated", "no manifest"],
)
async def test_a_damaged_snapshot_is_built_anew(
    expected: Found, tmp_path: Path, minilm_path: Path, damage: Callable[[Path], object]
) -> None:
    """A damaged snapshot is one log line: the index is built from the database instead."""
    (generation,) = snapshots(tmp_path)
    damage(generation)
    async with process(tmp_path, **settings_of(minilm_path)) as (_, sidecar):
        await settled(sidecar, expected)
        log = log_of(tmp_path)
    assert RETURNED not in log
    assert "is not used" in log


async def test_what_was_invalidated_does_not_return(
    expected: Found, tmp_path: Path, minilm_path: Path
) -> None:
    """An entry that left after the snapshot was taken is not served from it."""
    question = f"please, {ASKED[0]}"
    async with process(tmp_path, **settings_of(minilm_path)) as (service, sidecar):
        await settled(sidecar, expected)
        gone = expected[0][0][0]
        request = cache_pb2.InvalidateRequest(tenant="acme", entry_id=gone)
        assert (await sidecar.stub.Invalidate(request)).entries == 1
        await service.kill()
    async with process(tmp_path, **settings_of(minilm_path)) as (_, sidecar):
        async with asyncio.timeout(20):
            while not (found := (await sidecar.explain(question)).candidates):
                await asyncio.sleep(0.05)
        assert gone not in {candidate.entry_id for candidate in found}


@pytest.mark.usefixtures("expected")
async def test_an_emptied_tenant_leaves_no_snapshot(tmp_path: Path, minilm_path: Path) -> None:
    """Invalidating all of a tenant's answers removes its vectors from the disk too."""
    async with process(tmp_path, **settings_of(minilm_path)) as (_, sidecar):
        async with asyncio.timeout(20):
            while RETURNED not in log_of(tmp_path):
                await asyncio.sleep(0.05)
        await sidecar.stub.Invalidate(cache_pb2.InvalidateRequest(tenant="acme", all=True))
        async with asyncio.timeout(20):
            while snapshots(tmp_path):
                await asyncio.sleep(0.02)
