"""`sidecache up` starts, says what is wrong, and leaves nothing behind, however it ends."""

import os
import socket
import stat
from pathlib import Path

import pytest

from sidecache.fleet.ports import free_block
from tests.fixtures.up import Up, assert_gone, make_home, running_up


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def test_a_tour_without_a_terminal_ends_well(home: Path) -> None:
    """Every answer comes from where the tour says, then everything stops with exit code 0."""
    with running_up(home, "--tour") as up:
        up.wait_line("A short tour")
        services = up.services()
        code = up.wait_end()
        told = "\n".join(up.lines)
        sources = [
            line.split()[0]
            for line in up.lines
            if line.strip().startswith(("ENGINE", "EXACT", "SEMANTIC"))
        ]
    assert sources == ["ENGINE", "EXACT", "SEMANTIC", "ENGINE", "ENGINE", "ENGINE"], told
    assert code == 0, told
    assert "All 6 answers" in told
    assert len(services) == 3
    assert_gone(services)


def test_its_folder_is_private(home: Path) -> None:
    """Keys, logs and socket are for this user alone; the key works and is kept."""
    with running_up(home, "--workers", "2") as up:
        up.wait_serving()
        folder = home / "run" / str(up.port)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in ("demo.key", "keys.toml", "router.log", "worker-2.log"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
        key = (folder / "demo.key").read_text().strip()
        assert key not in (folder / "keys.toml").read_text()
        assert any(key in line for line in up.lines)
        services = up.services()
        assert len(services) == 4
        up.interrupt()
        assert up.wait_end() == 0
        assert_gone(services)
        assert not (folder / "up.json").exists()


def test_nothing_outlives_a_sigkill(home: Path) -> None:
    """Even a SIGKILL of `up` leaves no orphan: the kernel ends its services."""
    with running_up(home) as up:
        up.wait_serving()
        services = up.services()
        assert len(services) == 3
        up.process.kill()
        assert_gone(services)


def test_a_foreign_port_is_named(home: Path) -> None:
    """A worker's port that another program holds: who, and which flag helps. Nothing started."""
    first, second = free_block(2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", second))
        server.listen()
        up = Up(home, first)
        assert up.wait_end() == 3
    (line,) = up.lines
    assert f"port {second} is busy" in line
    assert f"(pid {os.getpid()})" in line
    assert "--port" in line
    assert not (home / "run").exists()


def test_a_service_that_cannot_start_is_quoted(home: Path) -> None:
    """A bad setting ends in the service's own last words, exit code 3, and nothing running."""
    setting = {"SIDECACHE_CACHE_MAX_BYTES": "plenty"}
    with running_up(home, environment=setting) as up:
        assert up.wait_end() == 3
    (error,) = [line for line in up.lines if line.startswith("error:")]
    assert "cache sidecar" in error
    assert "max_bytes" in error.lower()
    assert "cache.log" in error
