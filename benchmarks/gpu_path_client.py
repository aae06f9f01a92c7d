"""The callers of benchmarks.gpu_path, as a process of their own.

Reads commands from standard input and answers each on standard output, one JSON object
a line. ``{"do": "streams", "rows": [[...], ...], "max_tokens": n}`` runs one caller for
each row of seeds, a stream for each seed; a pair of seeds is a prefix of ``prompt_tokens`` and
a question of ``question_tokens`` after it. ``{"do": "cancel", ...}`` leaves a stream after
its first tokens. ``{"do": "steady", ...}`` is :func:`benchmarks.steady.closed_loops`. Times
are the monotonic clock's, which all processes share.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from observability import grpc_runtime

grpc_runtime.prepare()

import grpc
import numpy as np
import uvloop

from benchmarks.random_model import VOCABULARY
from benchmarks.steady import closed_loops
from observability.process import settle_memory
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

# One connection carries at most 100 streams where a server does not say otherwise.
_CHANNELS = 8
_TIMEOUT_S = 120.0


def prompt(seed: int, length: int) -> list[int]:
    """Ids that differ from the first one on for every seed: nothing is shared by chance."""
    ids: list[int] = np.random.default_rng(seed).integers(300, VOCABULARY, length).tolist()
    return ids


@dataclass
class Tally:
    """What came of some streams."""

    tokens: int = 0
    messages: int = 0
    first_token_s: list[float] = field(default_factory=list)
    cached_prompt_tokens: list[int | None] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)


class Callers:
    """Streams over a few channels to one address."""

    def __init__(self, address: str, key: str) -> None:
        # Without a pool of its own each, all channels would be one connection.
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(_CHANNELS)]
        stubs = [inference_pb2_grpc.InferenceServiceStub(each) for each in self._channels]
        self._stubs = itertools.cycle(stubs)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def streams(self, command: dict[str, Any]) -> dict[str, Any]:
        """Every row at once, the seeds of a row one after another."""
        tally = Tally()
        rows = [[_request(seed, command) for seed in row] for row in command["rows"]]
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(self._row(row, tally))
        return {
            "began": began,
            "ended": time.monotonic(),
            "tokens": tally.tokens,
            "messages": tally.messages,
            "first_token_s": tally.first_token_s,
            "cached_prompt_tokens": tally.cached_prompt_tokens,
            "workers": tally.workers,
        }

    async def cancel(self, command: dict[str, Any]) -> dict[str, Any]:
        """Leave a stream once it has a few tokens."""
        call = self._call(_request(command["seed"], command))
        tokens = 0
        async for event in call:
            tokens += len(event.delta.token_ids)
            if tokens >= command["after"]:
                break
        cancelled = time.monotonic()
        call.cancel()
        return {"cancelled": cancelled, "tokens": tokens}

    async def steady(self, command: dict[str, Any]) -> dict[str, Any]:
        """Closed loops; see :func:`benchmarks.steady.closed_loops`."""

        async def answer(seed: int, max_tokens: int, told: Callable[[int], None]) -> None:
            async for event in self._call(_request(seed, command | {"max_tokens": max_tokens})):
                told(len(event.delta.token_ids))

        tally = await closed_loops(
            answer, range(*command["streams"]), command["of"], command["max_tokens"],
            command["first_seed"], (command["begin"], command["end"]),
        )  # fmt: skip
        return asdict(tally)

    async def _row(self, requests: list[pb.GenerateRequest], tally: Tally) -> None:
        for request in requests:
            await self._stream(request, tally)

    async def _stream(self, request: pb.GenerateRequest, tally: Tally) -> None:
        began, seen = time.monotonic(), 0
        async for event in self._call(request):
            tally.messages += 1
            if event.HasField("started"):
                tally.workers.append(event.started.worker)
            if event.HasField("finished"):
                usage = event.finished.usage
                said = usage.HasField("cached_prompt_tokens")
                tally.cached_prompt_tokens.append(usage.cached_prompt_tokens if said else None)
            count = len(event.delta.token_ids)
            if count and not seen:
                tally.first_token_s.append(time.monotonic() - began)
            seen += count
        tally.tokens += seen

    def _call(self, request: pb.GenerateRequest) -> Any:
        return next(self._stubs).Generate(request, metadata=self._metadata, timeout=_TIMEOUT_S)


def _request(seed: int | list[int], command: dict[str, Any]) -> pb.GenerateRequest:
    first, *more = [seed] if isinstance(seed, int) else seed
    ids = prompt(first, command["prompt_tokens"])
    for each in more:
        ids += prompt(each, command["question_tokens"])
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), max_tokens=command["max_tokens"])


async def serve(address: str, key: str) -> None:
    """Do what is asked until standard input ends."""
    callers = Callers(address, key)
    doing = {"streams": callers.streams, "cancel": callers.cancel, "steady": callers.steady}
    settle_memory()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = await doing[command["do"]](command)
        except* grpc.aio.AioRpcError as failed:
            answer = {"error": repr(failed.exceptions[0])[:500]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))  # noqa: PLR2004
