"""Generations of index snapshots: the newest sound one, whatever happened while it was written."""

import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cache_svc.entry import Place
from cache_svc.faiss_index import FaissIndex
from cache_svc.index_shelf import IndexShelf
from cache_svc.ivf_index import IvfIndex
from tests.fixtures.cache import digest
from tests.unit.cache_svc.test_growing_index import DIMENSION, clustered, filled

PLACE = Place("acme", digest("scope"))
OTHER = Place("globex", digest("scope"))


def index_of(rows: int) -> IvfIndex:
    flat = FaissIndex(DIMENSION)
    filled(flat, clustered(rows))
    return IvfIndex.build(DIMENSION, flat)


@pytest.fixture
def shelf(tmp_path: Path) -> IndexShelf:
    return IndexShelf(tmp_path / "indexes", "model", DIMENSION)


def generations(folder: Path) -> list[Path]:
    return sorted(folder.glob("indexes/*/*"))


def test_the_newest_generation_is_loaded(shelf: IndexShelf, tmp_path: Path) -> None:
    """Each save is a new generation, the older one goes, and nobody else may read any."""
    shelf.save(PLACE, index_of(500))
    shelf.save(PLACE, index_of(700))
    loaded = shelf.load(PLACE)
    assert loaded is not None
    assert len(loaded) == 700
    assert [path.name for path in generations(tmp_path)] == ["2"]
    for path in [tmp_path / "indexes", *tmp_path.glob("indexes/**/*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert shelf.names() == {IndexShelf.name(PLACE)}
    assert "acme" not in IndexShelf.name(PLACE)


def test_scopes_and_embedders_are_kept_apart(shelf: IndexShelf, tmp_path: Path) -> None:
    """A snapshot serves the one scope and the one embedder it was made for."""
    shelf.save(PLACE, index_of(500))
    assert shelf.load(OTHER) is None
    assert IndexShelf(tmp_path / "indexes", "other model", DIMENSION).load(PLACE) is None
    moved = tmp_path / "indexes" / IndexShelf.name(OTHER)
    (tmp_path / "indexes" / IndexShelf.name(PLACE)).rename(moved)
    assert shelf.load(OTHER) is None


def test_a_damaged_generation_gives_way_to_the_one_before(
    shelf: IndexShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are there, say after a crash, the newest sound one serves."""
    with monkeypatch.context() as patch:
        patch.setattr("cache_svc.index_shelf.shutil.rmtree", lambda *_args, **_named: None)
        shelf.save(PLACE, index_of(500))
        shelf.save(PLACE, index_of(700))
    newest = generations(tmp_path)[-1] / "index.faiss"
    newest.write_bytes(newest.read_bytes()[:-50])
    loaded = shelf.load(PLACE)
    assert loaded is not None
    assert len(loaded) == 500


def test_a_failed_save_leaves_the_older_generation(
    shelf: IndexShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the new generation, and leaves nothing of it."""
    shelf.save(PLACE, index_of(500))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cache_svc.index_snapshot._write", full)
    with pytest.raises(OSError, match="No space"):
        shelf.save(PLACE, index_of(700))
    loaded = shelf.load(PLACE)
    assert loaded is not None
    assert len(loaded) == 500
    assert [path.name for path in generations(tmp_path)] == ["1"]


def test_what_belongs_to_nobody_is_dropped(shelf: IndexShelf) -> None:
    """Scopes that are gone take their snapshots along."""
    shelf.save(PLACE, index_of(500))
    shelf.save(OTHER, index_of(500))
    shelf.keep_only({IndexShelf.name(OTHER)})
    assert shelf.names() == {IndexShelf.name(OTHER)}
    shelf.discard(OTHER)
    shelf.discard(OTHER)
    assert shelf.names() == set()


def test_a_link_in_the_folder_is_not_followed(shelf: IndexShelf, tmp_path: Path) -> None:
    """Cleaning up never reaches outside."""
    outside = tmp_path / "precious"
    outside.mkdir()
    shelf.save(PLACE, index_of(500))
    (tmp_path / "indexes" / "link").symlink_to(outside)
    shelf.keep_only(set())
    assert outside.is_dir()
    assert shelf.names() == set()


_SAVER = """
import itertools, sys
from pathlib import Path
from tests.unit.cache_svc.test_index_shelf import DIMENSION, PLACE, IndexShelf, index_of
shelf = IndexShelf(Path(sys.argv[1]), "model", DIMENSION)
small, large = index_of(500), index_of(3000)
for turn in itertools.count():
    shelf.save(PLACE, large if turn % 2 else small)
    if turn == 1:
        print("saving", flush=True)
"""


def test_killed_at_any_moment_a_sound_generation_is_left(tmp_path: Path) -> None:
    """SIGKILL while generation after generation is written leaves one that loads."""
    folder = tmp_path / "indexes"
    for round_ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _SAVER, str(folder)], stdout=subprocess.PIPE, text=True
        ) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == "saving\n"
            threading.Event().wait(0.02 + 0.013 * round_)  # any moment will do
            saver.send_signal(signal.SIGKILL)
        loaded = IndexShelf(folder, "model", DIMENSION).load(PLACE)
        assert loaded is not None
        assert len(loaded) in {500, 3000}
        assert len(generations(tmp_path)) <= 3
