"""What stands before the engines in the GPU benchmarks: sidecar, router, and callers."""

import asyncio
import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from chaos.process import ServiceProcess
from sidecache.v1 import cache_pb2, cache_pb2_grpc

KEY = "benchmark-key"
# Longest line that the callers answer.
_MAX_LINE_BYTES = 1 << 26


def say(text: str) -> None:
    """Progress, beside the result."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()


def has_sidecar() -> bool:
    """Whether the sidecar's packages are here; without them the path is one hop shorter."""
    return all(importlib.util.find_spec(name) for name in ("faiss", "onnxruntime"))


@asynccontextmanager
async def front(
    folder: Path, workers: Sequence[str], name: str = "router", **more: str
) -> AsyncIterator[tuple[str, str | None]]:
    """A router and a sidecar of its own as processes; their addresses.

    The semantic tier is off.

    Args:
        folder: for their files.
        workers: addresses.
        name: of the router in the folder.
        more: settings of the router.
    """
    keys = folder / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\ntenant = "benchmark"\nsha256 = "{digest}"\n')
    async with AsyncExitStack() as stack:
        settings = {
            "workers": json.dumps(list(workers)), "keys_file": str(keys),
            "admission__max_streams": "1024", "admission__max_streams_per_tenant": "1024",
        } | more  # fmt: skip
        if has_sidecar():
            socket = f"unix:{folder}/{name}.sock"
            own = {"server__listen": socket, "semantic__enabled": "false"}
            start = ServiceProcess.start("cache_svc", folder, own, name=f"{name}-cache")
            settings["cache"] = (await stack.enter_async_context(start)).address
        start = ServiceProcess.start("router", folder, settings, name=name)
        yield (await stack.enter_async_context(start)).address, settings.get("cache")


async def until_followed(cache: str, workers: int) -> None:
    """Return once the sidecar has the KV events of every worker."""
    async with grpc.aio.insecure_channel(cache) as channel, asyncio.timeout(30):
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        while True:
            stats = await stub.GetStats(cache_pb2.GetStatsRequest())
            if stats.prefix_workers_followed == workers:
                return
            await asyncio.sleep(0.05)


class Callers:
    """The callers' processes: :mod:`benchmarks.gpu_path_client`."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @property
    def processes(self) -> int:
        """How many there are."""
        return len(self._processes)

    @classmethod
    @asynccontextmanager
    async def start(cls, address: str, processes: int = 1) -> AsyncIterator["Callers"]:
        """Callers of the router at this address; they end with the block."""
        started = []
        try:
            for _ in range(processes):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.gpu_path_client", address, KEY),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=_MAX_LINE_BYTES,
                )
                started.append(process)
            yield cls(started)
        finally:
            for process in started:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Have one process of callers do something.

        Raises:
            SystemExit: a stream failed, or the process ended.
        """
        return await _ask(self._processes[0], command)

    async def ask_each(self, commands: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Have each process do its own, all at once; as :meth:`ask`."""
        pairs = zip(self._processes, commands, strict=False)
        return await asyncio.gather(*[_ask(process, command) for process, command in pairs])


async def _ask(process: asyncio.subprocess.Process, command: dict[str, Any]) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None  # noqa: S101 - both are pipes
    assert stdout is not None  # noqa: S101
    stdin.write(json.dumps(command).encode() + b"\n")
    line = await stdout.readline()
    if not line:
        raise SystemExit("the callers' process ended")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise SystemExit(f"a stream failed: {answer['error']}")
    return answer
