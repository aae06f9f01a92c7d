"""Snapshots of large indexes: used when everything about them is right, else ignored."""

import json
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from cache_svc.faiss_index import FaissIndex
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.index_snapshot import Origin, load, reconcile, save
from cache_svc.ivf_index import IvfIndex
from tests.fixtures.cache import random_unit
from tests.unit.cache_svc.test_growing_index import clustered, filled, wait_until_built

DIMENSION = 32
ORIGIN = Origin(fingerprint="model", generation=3, scope="acme/1", dimension=DIMENSION)
ROWS = 1000


@pytest.fixture
def index() -> IvfIndex:
    flat = FaissIndex(DIMENSION)
    filled(flat, clustered(ROWS))
    return IvfIndex.build(DIMENSION, flat)


@pytest.fixture
def folder(index: IvfIndex, tmp_path: Path) -> Path:
    """A folder with a sound snapshot."""
    save(index, tmp_path / "scope", ORIGIN)
    return tmp_path / "scope"


def test_loaded_index_answers_as_the_saved_one(index: IvfIndex, folder: Path) -> None:
    """A snapshot searches, takes and forgets vectors just as the index it was taken of."""
    loaded = load(folder, ORIGIN)
    assert loaded is not None
    assert len(loaded) == ROWS
    for vector in clustered(20, seed=5):
        assert loaded.search(vector, 4) == index.search(vector, 4)
    loaded.remove(range(500))
    loaded.add(7, random_unit("seven", DIMENSION))
    assert loaded.search(random_unit("seven", DIMENSION), 1)[0].id == 7
    assert len(loaded) == 501


def test_only_the_owner_may_read(folder: Path) -> None:
    """Vectors tell of prompts: files are 0600, the folder 0700, and no part file is left."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["index.faiss", "manifest.json"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize(
    "expected",
    [
        replace(ORIGIN, fingerprint="other"),
        replace(ORIGIN, generation=4),
        replace(ORIGIN, scope="globex/1"),
        replace(ORIGIN, dimension=64),
    ],
)
def test_foreign_snapshot_is_ignored(
    folder: Path, expected: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """Vectors of another embedder, generation, scope or dimension are never compared."""
    caplog.set_level("INFO")
    assert load(folder, expected) is None
    assert "is not used: its" in caplog.text


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _replace_by_flat(path: Path) -> None:
    faiss.write_index(faiss.IndexFlatIP(DIMENSION), str(path))


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda folder: _flip(folder / "index.faiss"),
    "truncated": lambda folder: _truncate(folder / "index.faiss"),
    "another index": lambda folder: _replace_by_flat(folder / "index.faiss"),
    "no index": lambda folder: (folder / "index.faiss").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: _truncate(folder / "manifest.json"),
    "empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "manifest of a list": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "binary manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00"),
}


@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=_DAMAGES)
def test_damaged_snapshot_is_ignored(
    folder: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot that is damaged in any way is one log line, and no index."""
    caplog.set_level("INFO")
    damage(folder)
    assert load(folder, ORIGIN) is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("count", ROWS + 1),
        ("count", "1000"),
        ("lists_searched", 0),
        ("lists_searched", 10**9),
        ("bytes", 12),
        ("sha256", "0" * 64),
        ("surplus", 1),
    ],
)
def test_manifest_that_lies_is_refused(folder: Path, field: str, value: object) -> None:
    """Every field of a manifest is checked against the index or the format."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert load(folder, ORIGIN) is None


def test_sound_file_of_damaged_vectors_is_refused(index: IvfIndex, tmp_path: Path) -> None:
    """NaN in memory that was saved with a right checksum is still found before it serves."""
    with index.unchanging() as ivf:
        for number in range(ivf.nlist):
            size = ivf.invlists.list_size(number)
            codes = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), size * ivf.code_size)
            codes.view(np.float16)[:] = np.nan
    save(index, tmp_path, ORIGIN)
    assert load(tmp_path, ORIGIN) is None


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """The kernel refuses longer files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_no_snapshot(index: IvfIndex, folder: Path) -> None:
    """A snapshot that could not be written is an OSError and leaves nothing that loads."""
    with _largest_file(10_000), pytest.raises(OSError, match="large"):
        save(index, folder, ORIGIN)
    assert load(folder, ORIGIN) is None
    assert not list(folder.glob(".*"))
    save(index, folder, ORIGIN)
    assert load(folder, ORIGIN) is not None


def test_reconcile_follows_the_store(folder: Path) -> None:
    """What left the store leaves the index; what joined the store is asked for."""
    loaded = load(folder, ORIGIN)
    assert loaded is not None
    assert reconcile(loaded, range(10, ROWS + 3)) == [ROWS, ROWS + 1, ROWS + 2]
    assert loaded.ids() == set(range(10, ROWS))


def test_new_lists_are_saved_and_a_failing_disk_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rebuild can save what it built; when it cannot, the index serves all the same."""
    folder = tmp_path / "scope"
    policy = RebuildPolicy(flat_rows=400)
    vectors = clustered(900)
    with Builder() as builder:
        index = GrowingIndex(
            DIMENSION, builder, policy, on_built=lambda built: save(built, folder, ORIGIN)
        )
        filled(index, vectors[:401])
        wait_until_built(index)
        saved = load(folder, ORIGIN)
        assert saved is not None
        folder.chmod(0o700)
        tmp_path.joinpath("other").write_text("a file where a folder is wanted")
        broken = GrowingIndex(
            DIMENSION,
            builder,
            policy,
            on_built=lambda built: save(built, tmp_path / "other", ORIGIN),
        )
        filled(broken, vectors[:401])
        wait_until_built(broken)
    assert "was not saved" in caplog.text
    assert isinstance(broken.main, IvfIndex)
    started = GrowingIndex(DIMENSION, builder, policy, start=saved)
    assert len(started) == len(saved) >= 401
