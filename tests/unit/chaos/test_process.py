"""Processes under test: faults that really struck, and nothing left behind."""

import asyncio
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from chaos.process import ServiceDied, ServiceProcess

MODULE = "tests.unit.chaos.tiny_service"


def start(
    folder: Path, settings: dict[str, str] | None = None, ready_timeout_s: float = 10
) -> AbstractAsyncContextManager[ServiceProcess]:
    return ServiceProcess.start(
        MODULE,
        folder,
        settings or {},
        name="tiny",
        env_prefix="TINY_",
        ready_timeout_s=ready_timeout_s,
    )


async def test_starts_ready_and_is_gone_afterwards(tmp_path: Path) -> None:
    """The address dials once start() returned, and leaving the block ends the process."""
    async with start(tmp_path) as tiny:
        host, _, port = tiny.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        assert await tiny.is_running()
    assert tiny.exit_code == -signal.SIGKILL
    assert tiny.state() == "X"


async def test_kill_is_proved_by_waitpid(tmp_path: Path) -> None:
    """The exit code says that a SIGKILL ended it, and a second signal says it is too late."""
    async with start(tmp_path) as tiny:
        assert await tiny.kill() == -signal.SIGKILL
        assert not await tiny.is_running(within_s=0)
        with pytest.raises(ServiceDied, match="ended already with -9"):
            tiny.hang()


async def test_hang_is_proved_by_proc_and_ends_with_resume(tmp_path: Path) -> None:
    """SIGSTOP shows as T in /proc; after SIGCONT it runs again; hung, it can still be killed."""
    async with start(tmp_path) as tiny:
        assert not await tiny.is_hung(within_s=0)
        tiny.hang()
        assert await tiny.is_hung()
        tiny.resume()
        assert await tiny.is_running()
        tiny.hang()
        assert await tiny.kill() == -signal.SIGKILL


async def test_terminate_lets_it_drain(tmp_path: Path) -> None:
    """SIGTERM gives the service's own exit code, here 0."""
    async with start(tmp_path) as tiny:
        assert await tiny.terminate() == 0


async def test_a_service_that_dies_at_the_start_says_why(tmp_path: Path) -> None:
    """The error carries the exit code and the last lines of the log."""
    with pytest.raises(ServiceDied, match=r"ended with 1 before it was ready:\ntiny: no such"):
        await start(tmp_path, {"fail": "1"}).__aenter__()


async def test_a_service_that_never_gets_ready_is_given_up_and_ended(tmp_path: Path) -> None:
    """The wait for readiness has a bound, and the process does not outlive it."""
    with pytest.raises(ServiceDied, match=r"not ready within 0\.3 s"):
        await start(tmp_path, {"mute": "1"}, ready_timeout_s=0.3).__aenter__()


async def test_the_surrounding_shell_does_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment runs with the settings it names, whatever the shell exports."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4317")
    monkeypatch.setenv("SIDECACHE_ROUTER_INSECURE", "true")
    async with start(tmp_path) as tiny:
        environment = _environment(tiny.pid)
    assert b"OTEL_" not in environment
    assert b"SIDECACHE_" not in environment


async def test_the_leash_ends_it_with_its_parent(tmp_path: Path) -> None:
    """A SIGKILL of the test run itself leaves no service behind."""
    ready = tmp_path / "ready"
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import os, subprocess, sys, time\n"
        "leash = [sys.executable, '-m', 'chaos.leash', str(os.getpid())]\n"
        f"child = subprocess.Popen([*leash, sys.executable, '-m', '{MODULE}'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)",
        env={**os.environ, "TINY_SERVER__READY_FILE": str(ready)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    async with asyncio.timeout(10):
        while not ready.exists():
            await asyncio.sleep(0.01)
        parent.kill()
        await parent.wait()
        while _alive(child):
            await asyncio.sleep(0.01)


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
