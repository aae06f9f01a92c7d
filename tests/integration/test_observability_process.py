"""observability.process.run as a real process: signals, exit codes, one clear line."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest

from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc

ROOT = Path(__file__).parents[2]


class Process:
    """The demo service in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self._process = process
        self.ready_file = ready_file

    async def address(self) -> str:
        """Where it serves, once it does."""
        async with asyncio.timeout(20):
            while not self.ready_file.exists():
                assert self._process.returncode is None, await self.errors()
                await asyncio.sleep(0.02)
        return self.ready_file.read_text().strip()

    async def seen_in_log(self, text: str) -> None:
        """Wait for a log line."""
        assert self._process.stderr is not None
        async with asyncio.timeout(20):
            while text not in (line := (await self._process.stderr.readline()).decode()):
                assert line, f"the log ended without {text!r}"

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def exit_code(self, timeout_s: float = 20) -> int:
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def errors(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode()


@asynccontextmanager
async def demo(tmp_path: Path, *flags: str) -> AsyncIterator[Process]:
    ready_file = tmp_path / "ready"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.unit.observability.demo_service"),
        *("--server.ready_file", str(ready_file), *flags),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, ready_file)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def first_message(channel: grpc.aio.Channel) -> Any:
    stub: Any = rpc.InferenceServiceStub(channel)
    call = stub.Generate(pb.GenerateRequest())
    await call.read()
    return call


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_well(tmp_path: Path, number: int) -> None:
    """After SIGTERM or SIGINT the running stream ends whole, then the process exits with 0."""
    finish = tmp_path / "finish"
    async with demo(tmp_path, "--finish_file", str(finish)) as process:
        async with grpc.aio.insecure_channel(await process.address()) as channel:
            call = await first_message(channel)
            process.signal(number)
            await process.seen_in_log("draining")
            finish.touch()
            assert await call.read() is not grpc.aio.EOF
            assert await call.read() is grpc.aio.EOF
        assert await process.exit_code() == 0
        assert not process.ready_file.exists()
        assert "error" not in (await process.errors()).lower()


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Whoever signals twice does not wait for the drain."""
    flags = ("--finish_file", str(tmp_path / "never"), "--server.drain_grace_s", "600")
    async with (
        demo(tmp_path, *flags) as process,
        grpc.aio.insecure_channel(await process.address()) as channel,
    ):
        await first_message(channel)
        process.signal(signal.SIGTERM)
        await process.seen_in_log("draining")
        process.signal(signal.SIGTERM)
        assert await process.exit_code(5) == 128 + signal.SIGTERM
        assert not process.ready_file.exists()


async def test_a_signal_stops_a_start_that_hangs(tmp_path: Path) -> None:
    """A service that is still loading when it is told to stop does stop."""
    async with demo(tmp_path, "--start_error", "hang", "--telemetry.log_level", "DEBUG") as process:
        await process.seen_in_log("starting")
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0


async def test_a_drain_is_bounded_by_its_grace(tmp_path: Path) -> None:
    """A stream that never ends is cut off after drain_grace_s, and the exit is still 0."""
    flags = ("--finish_file", str(tmp_path / "never"), "--server.drain_grace_s", "0.2")
    async with (
        demo(tmp_path, *flags) as process,
        grpc.aio.insecure_channel(await process.address()) as channel,
    ):
        call = await first_message(channel)
        process.signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await process.exit_code() == 0


async def test_a_dead_collector_does_not_hold_the_exit(tmp_path: Path) -> None:
    """With spans to export and nobody to take them the process ends within two seconds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # accepts, and never answers
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with demo(tmp_path, "--telemetry.otlp_endpoint", endpoint) as process:
            async with grpc.aio.insecure_channel(await process.address()) as channel:
                await first_message(channel)
            process.signal(signal.SIGTERM)
            begin = monotonic()
            assert await process.exit_code() == 0
            # Two seconds for telemetry, and what Python needs to end.
            assert monotonic() - begin < 3
            log = [json.loads(line) for line in (await process.errors()).splitlines()]
            assert {line["level"] for line in log} == {"INFO"}
            assert any(line["message"].startswith("telemetry dropped: 1 spans") for line in log)


async def test_a_bad_setting_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """The line names the setting, what it got and what it may be."""
    async with demo(tmp_path, "--telemetry.log_level", "LOUD") as process:
        assert await process.exit_code() == 2
        [line] = (await process.errors()).splitlines()
        assert line.startswith("sidecache-demo: setting telemetry.log_level: got 'LOUD'; ")


async def test_a_busy_port_is_one_line_and_exit_3(tmp_path: Path) -> None:
    """A service that cannot start says why, without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with demo(tmp_path, "--server.listen", f"127.0.0.1:{port}") as process:
            assert await process.exit_code() == 3
            [line] = (await process.errors()).splitlines()
            assert f"port {port} on 127.0.0.1 is in use" in line


async def test_a_setup_error_in_a_task_group_is_one_line_too(tmp_path: Path) -> None:
    """However deep it was raised, SetupError is exit 3 with its text."""
    async with demo(tmp_path, "--start_error", "setup") as process:
        assert await process.exit_code() == 3
        [line] = (await process.errors()).splitlines()
        assert line == "sidecache-demo: the model file is missing: run sidecache pull"


async def test_a_crash_is_one_json_line_and_exit_1(tmp_path: Path) -> None:
    """A bug at the start is logged with its type and place, not its text."""
    async with demo(tmp_path, "--start_error", "bug") as process:
        assert await process.exit_code() == 1
        log = [json.loads(line) for line in (await process.errors()).splitlines()]
        [crash] = [line for line in log if line["level"] == "ERROR"]
        assert "canary" not in json.dumps(log)
        assert crash["message"] == "crashed"


async def test_a_ready_file_that_cannot_be_written_is_exit_3(tmp_path: Path) -> None:
    """Whoever waits for the file would wait for ever; so the service says it cannot."""
    missing = tmp_path / "missing" / "ready"
    async with demo(tmp_path, "--server.ready_file", str(missing)) as process:
        assert await process.exit_code() == 3
        assert f"ready file {missing}" in await process.errors()
