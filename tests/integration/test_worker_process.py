"""A worker as a process: start, serve, drain, and a clear word when it cannot start."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from sidecache.v1 import inference_pb2 as pb
from sidecache.v1.inference_pb2_grpc import InferenceServiceStub
from tests.fixtures.processes import still_running


async def start(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inference_svc", *flags, stderr=asyncio.subprocess.PIPE
    )


async def address(ready: Path, process: asyncio.subprocess.Process) -> str:
    """The address in the ready file, once the worker serves."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(ready.exists):
            assert process.returncode is None, await _errors(process)
            await asyncio.sleep(0.02)
    return (await asyncio.to_thread(ready.read_text)).strip()


async def _errors(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode()


async def test_a_worker_serves_drains_and_ends(tmp_path: Path) -> None:
    """SIGTERM lets a running stream finish, then the process exits with 0."""
    ready = tmp_path / "ready"
    process = await start(
        "--engine", "scripted", "--scripted.tokens_per_s", "100", "--server.ready_file", str(ready)
    )
    target = await address(ready, process)
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = InferenceServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(text="x", max_tokens=40))
        events = [await call.read(), await call.read()]
        process.send_signal(signal.SIGTERM)
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
    assert events[-1].HasField("finished")
    assert sum(len(event.delta.token_ids) for event in events) == 40
    async with asyncio.timeout(10):
        errors = await _errors(process)
        assert await process.wait() == 0, errors


async def test_a_killed_worker_leaves_no_engine_behind(tmp_path: Path, smollm2_path: Path) -> None:
    """Even SIGKILL of the worker ends the stepping process."""
    ready = tmp_path / "ready"
    process = await start("--model_path", str(smollm2_path), "--server.ready_file", str(ready))
    target = await address(ready, process)
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = InferenceServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(text="Once upon a time", max_tokens=4))
        assert [message async for message in call][-1].HasField("finished")
    (engine,) = psutil.Process(process.pid).children()
    process.kill()
    await asyncio.to_thread(engine.wait, 10)
    await _errors(process)
    await process.wait()


async def test_a_worker_killed_while_it_loads_leaves_no_engine_behind(smollm2_path: Path) -> None:
    """Nor does one that is killed before its engine is ready, which then listens to nobody."""
    process = await start("--model_path", str(smollm2_path))
    worker = psutil.Process(process.pid)
    async with asyncio.timeout(60):
        while not (children := worker.children()) or not _is_loading(children[0]):
            await asyncio.sleep(0.01)
    process.kill()
    left = await asyncio.to_thread(still_running, children, 1)
    for each in left:
        each.kill()
    assert not left
    await _errors(process)
    await process.wait()


def _is_loading(engine: psutil.Process) -> bool:
    """Whether the model's file is open, which it is while its tensors are read."""
    return any(each.path.endswith(".gguf") for each in engine.open_files())


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "does not exist"), (b"not a model at all", "is not a usable GGUF file")],
)
async def test_a_bad_model_file_ends_the_start(
    tmp_path: Path, content: bytes | None, word: str
) -> None:
    """A missing or corrupt model is one clear line and exit code 3."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    process = await start("--model_path", str(path))
    async with asyncio.timeout(30):
        errors = await _errors(process)
        assert await process.wait() == 3, errors
    assert word in errors
    assert str(path) in errors
    assert "sidecache pull" in errors
    assert "Traceback" not in errors


async def test_a_bad_setting_ends_the_start() -> None:
    """A value that may not be is named, with exit code 2."""
    process = await start("--engine", "steam")
    async with asyncio.timeout(30):
        errors = await _errors(process)
        assert await process.wait() == 2, errors
    assert "engine" in errors
    assert "steam" in errors
