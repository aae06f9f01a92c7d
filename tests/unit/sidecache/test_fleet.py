"""A fleet of real processes: started together, kept alive, stopped in order, within bounds."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecache.errors import InvalidRequest, SetupError
from sidecache.fleet.fleet import Fleet, Patience
from sidecache.fleet.plan import ServiceSpec, plan_fleet
from sidecache.fleet.ports import busy_ports, choose_ports, holder
from sidecache.fleet.service_log import ServiceLog
from sidecache.fleet.service_process import ServiceProcess
from sidecache.fleet.state import FleetState, find_running

SHORT = Patience(start_s=20, drain_s=0.5, first_backoff_s=0.01, max_backoff_s=0.02, max_restarts=2)
MODULE = "tests.unit.sidecache.fleet_service"
Services = Callable[..., list[ServiceProcess]]


@pytest.fixture
def services(tmp_path: Path) -> Services:
    """Services named a, b, c…, each with the habit it is given."""

    def make(*habits: str) -> list[ServiceProcess]:
        made = []
        for name, habit in zip("abc", habits, strict=False):
            listen = f"unix:{tmp_path}/{name}.sock"
            environment = {
                "FLEET_LISTEN": listen,
                "FLEET_NAME": name,
                "FLEET_JOURNAL": str(tmp_path / "journal"),
                "FLEET_HABIT": habit,
            }
            spec = ServiceSpec(name, f"service {name}", MODULE, listen, environment)
            made.append(ServiceProcess(spec, ServiceLog(tmp_path / f"{name}.log")))
        return made

    return make


def journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text().splitlines()


async def test_all_start_and_all_stop(services: Services, tmp_path: Path) -> None:
    """Each is healthy before start returns, and none is left after the block."""
    ready: list[str] = []
    made = services("", "")
    async with Fleet(made, ready.append, SHORT) as fleet:
        await fleet.start(lambda service, _: ready.append(service.spec.name))
        assert sorted(ready) == ["a", "b"]
        assert all(service.is_running for service in made)
    assert not any(service.is_running for service in made)
    assert sorted(journal(tmp_path)) == ["a ended", "a started", "b ended", "b started"]


async def test_one_that_dies_at_start_is_quoted(services: Services) -> None:
    """Its last words are in the error, and the others are stopped."""
    made = services("", "dies at once")
    with pytest.raises(SetupError, match=r"service b ended \(1\): no model here"):
        async with Fleet(made, print, SHORT) as fleet:
            await fleet.start(lambda *_: None)
    assert not any(service.is_running for service in made)


async def test_one_that_is_never_ready_has_a_bound(services: Services) -> None:
    """A service that runs without becoming healthy is given up, with its log's path."""
    made = services("is never ready")
    with pytest.raises(SetupError, match=r"not ready within 1 s.*a\.log"):
        async with Fleet(made, print, Patience(start_s=1, drain_s=2)) as fleet:
            await fleet.start(lambda *_: None)
    assert not made[0].is_running


async def test_restarts_are_bounded(services: Services, tmp_path: Path) -> None:
    """A service that dies again and again is restarted so often, and no more."""
    reports: list[str] = []
    made = services("dies once asked")
    with pytest.raises(SetupError, match="it died 3 times"):
        async with Fleet(made, reports.append, SHORT) as fleet:
            await fleet.start(lambda *_: None)
            await fleet.watch()
    assert journal(tmp_path).count("a started") == 3
    assert "it was too much" in reports[0]
    assert any("is back" in report for report in reports)


async def test_one_that_will_not_stop_is_killed(services: Services) -> None:
    """SIGTERM has a bound; after it comes SIGKILL, and a word about it."""
    reports: list[str] = []
    made = services("ignores SIGTERM")
    began = 0.0
    async with Fleet(made, reports.append, SHORT) as fleet:
        await fleet.start(lambda *_: None)
        began = time.monotonic()
    assert 0.4 < time.monotonic() - began < 5
    assert not made[0].is_running
    assert reports == ["the service a did not stop within 0.5 s and was killed"]


async def test_a_second_signal_kills_at_once(services: Services) -> None:
    """`kill` does not wait for anybody."""
    made = services("ignores SIGTERM")
    patience = Patience(drain_s=60)
    async with Fleet(made, print, patience) as fleet:
        await fleet.start(lambda *_: None)
        asyncio.get_running_loop().call_later(0.1, fleet.kill)
        async with asyncio.timeout(10):
            await fleet.stop()
    assert not made[0].is_running


def test_the_plan_stops_from_the_front(tmp_path: Path) -> None:
    """Sidecar, workers, router: the router stops first, and every address fits."""
    state = FleetState(7070, tmp_path)
    specs = plan_fleet(state, tmp_path, [7070, 7071, 7072], "scripted")
    assert [spec.module for spec in specs] == [
        "cache_svc", "inference_svc", "inference_svc", "router",
    ]  # fmt: skip
    router = specs[-1].environment
    assert json.loads(router["SIDECACHE_ROUTER_WORKERS"]) == ["127.0.0.1:7071", "127.0.0.1:7072"]
    assert router["SIDECACHE_ROUTER_CACHE"] == specs[0].address == f"unix:{tmp_path}/cache.sock"
    # Answers outlive the fleet, in the folder that is its own.
    assert specs[0].environment["SIDECACHE_CACHE_STORE__PATH"] == str(state.folder / "cache")


def test_ports(tmp_path: Path) -> None:
    """Free, busy and impossible ports; a busy one is traced to its process."""
    assert choose_ports(7070, 2) == [7070, 7071, 7072]
    assert len(choose_ports(0, 3)) == 4
    for impossible in (-1, 65535, 99999):
        with pytest.raises(InvalidRequest, match=str(impossible)):
            choose_ports(impossible, 1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert busy_ports([port]) == [port]
        assert f"(pid {os.getpid()})" in holder(port)
        assert find_running(port, tmp_path) is None
    assert busy_ports([port]) == []


def test_only_a_living_fleet_counts_as_running(tmp_path: Path) -> None:
    """A note left by a SIGKILL is not a running fleet; the lock tells."""
    state = FleetState(7070, tmp_path)
    with state.claimed():
        state.note_running("127.0.0.1:7070", [7070, 7071])
        note = (state.folder / "up.json").read_text()
        running = find_running(7071, tmp_path)
        assert running is not None
        assert running.pid == os.getpid()
        with pytest.raises(SetupError, match="another"), state.claimed():
            pass
    assert find_running(7071, tmp_path) is None
    (state.folder / "up.json").write_text(note)
    assert find_running(7071, tmp_path) is None


def test_the_demo_key_stays(tmp_path: Path) -> None:
    """Made once; made anew together with its file when either is lost."""
    state = FleetState(7070, tmp_path)
    with state.claimed():
        key = state.demo_key()
        assert state.demo_key() == key
        state.keys_file.unlink()
        assert state.demo_key() != key
        assert state.keys_file.read_text().count("[[keys]]") == 1


def test_a_long_home_gets_a_short_socket(tmp_path: Path) -> None:
    """A Unix socket's path has a small limit; a deep home does not break it."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    state = FleetState(7070, deep)
    with state.claimed(), state.socket_folder() as folder:
        assert len(str(folder / "cache.sock")) < 100
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_a_log_is_bounded_and_speaks(tmp_path: Path) -> None:
    """The last complaint of the latest start; ordinary lines are none; size has a limit."""
    log = ServiceLog(tmp_path / "x.log", max_bytes=1000)

    def record(level: str, message: str, **more: str) -> bytes:
        return json.dumps({"level": level, "message": message, **more}).encode() + b"\n"

    with log.open() as file:
        file.write(record("INFO", "serving"))
        file.flush()
        assert log.last_words() == ""
        file.write(b"terminate called without an active exception\n")
        file.flush()
        assert log.last_words().startswith("terminate called")
        file.write(record("ERROR", "crashed", **{"error.type": "ValueError"}))
        file.write(record("INFO", "stopped"))
        file.flush()
        assert log.last_words() == "crashed (ValueError)"
        file.write(b"x" * 2000)
        file.flush()
        log.rotate_if_large()
        # The service goes on writing to the file it holds open.
        file.write(b"after\n")
    assert log.path.read_bytes() == b"after\n"
    with log.open():
        assert log.last_words() == ""
    later = ServiceLog(tmp_path / "x.log")
    later.open().close()
    assert later.path.read_bytes() == b""
    assert (tmp_path / "x.log.1").read_bytes() == b"after\n"
