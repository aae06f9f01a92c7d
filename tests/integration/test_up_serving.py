"""A running `sidecache up`, as its user lives with it: chat, figures, deaths and neighbours."""

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from sidecache.client import SidecacheClient, Source
from tests.fixtures.up import WAIT_S, Up, make_home, running_up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One fleet for all of these; slow enough to interrupt an answer."""
    home = make_home(tmp_path_factory.mktemp("up"))
    pace = {"SIDECACHE_WORKER_SCRIPTED__TOKENS_PER_S": "40"}
    with running_up(home, environment=pace) as running:
        running.wait_serving()
        yield running


def test_another_one_is_told_that_it_runs(up: Up) -> None:
    """A second `up` says who runs here, how to talk to it and how to stop it."""
    second = up.cli("up", "--engine", "scripted", "--port", str(up.port))
    assert second.returncode == 3
    assert f"already runs here (pid {up.process.pid}" in second.stderr
    assert f"sidecache chat --address {up.address}" in second.stderr
    assert re.search(r"--port \d+", second.stderr)


def test_chat_through_a_pipe(up: Up) -> None:
    """Each line is a turn of one conversation; the demo key is found by itself."""
    done = up.cli("chat", "-a", up.address, "--max-tokens", "4", text="hello\nand more\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ENGINE") == 2
    assert done.stdout.count("4 tokens") == 2
    assert re.search(r"trace [0-9a-f]{32}", done.stdout)
    assert "you >" not in done.stdout


def test_chat_says_what_is_wrong(up: Up) -> None:
    """An unknown model and a wrong key: one line each, and an exit code."""
    done = up.cli("chat", "-a", up.address, "--model", "nope", text="hello\n")
    assert done.returncode == 1
    assert "nope" in done.stderr
    up.environment["SIDECACHE_API_KEY"] = "wrong"
    try:
        done = up.cli("chat", "-a", up.address, text="hello\n")
    finally:
        del up.environment["SIDECACHE_API_KEY"]
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_cache_stats(up: Up) -> None:
    """The figures of the sidecar, for people and for programs."""
    done = up.cli("cache", "stats", "-a", up.address)
    assert done.returncode == 0, done.stderr
    assert "semantic hits" in done.stdout
    done = up.cli("cache", "stats", "-a", up.address, "--json")
    assert '"reachable": true' in done.stdout


def test_chat_in_a_terminal(up: Up) -> None:
    """Ctrl-C ends the answer and not the program; Ctrl-D ends the program."""
    child, terminal = pty.fork()
    if child == 0:
        # A run in the background may have been started with it ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-m", "sidecache", "chat", "-a", up.address]
        os.execve(sys.executable, command, up.environment)  # noqa: S606  our own program
    try:
        read_until(terminal, "you >")
        os.write(terminal, b"tell me something long\n")
        # Four words of the answer: it is under way, and far from its 256 tokens.
        read_until(terminal, r"( [a-z]{4}){4}")
        os.write(terminal, b"\x03")
        read_until(terminal, r"cancelled[\s\S]*you >")
        os.write(terminal, b"/new\n\x04")
        deadline = time.monotonic() + WAIT_S
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            drain(terminal)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
    finally:
        os.close(terminal)


async def test_a_service_that_dies_comes_back(up: Up) -> None:
    """A killed worker is reported with its signal, restarted, and serves again."""
    key = (up.home / "run" / str(up.port) / "demo.key").read_text().strip()
    up.service("inference_svc").kill()
    assert "was killed by SIGKILL" in up.wait_line("the worker was killed")
    up.wait_line("the worker is back")
    async with SidecacheClient(up.address, api_key=key) as client:
        await wait_for_worker(client)
        answer = await client.complete("after the fall", max_tokens=2)
    assert answer.source is Source.ENGINE
    assert psutil.pid_exists(up.service("router").pid)


async def wait_for_worker(client: SidecacheClient) -> None:
    """Until the router has found the worker that came back; bounded by its deadline."""
    deadline = time.monotonic() + WAIT_S
    while not sum(model.ready_workers for model in await client.models()):
        assert time.monotonic() < deadline


def drain(terminal: int) -> str:
    """What a terminal shows within a tenth of a second."""
    ready, _, _ = select.select([terminal], [], [], 0.1)
    try:
        return os.read(terminal, 65_536).decode(errors="replace") if ready else ""
    except OSError:
        # Linux says EIO when the other side has gone.
        return ""


def read_until(terminal: int, pattern: str) -> None:
    """Read until the screen holds ``pattern``, control sequences taken out."""
    deadline = time.monotonic() + WAIT_S
    screen = ""
    while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)):
        assert time.monotonic() < deadline, screen
        screen += drain(terminal)
