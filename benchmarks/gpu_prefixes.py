"""Long prompts over several engines on one device: by prefix, and in turns.

    python -m benchmarks.gpu_path --engine vllm --shape 1b --engines 2 --eager --json -
    python -m benchmarks.gpu_path --engine vllm --shape tiny --engines 2 --json -      # on a CPU

Each engine is a worker process with a KV cache for ``PREFIXES_EACH`` long prefixes; there are
nearly as many prefixes as all engines hold together, so every one fits into the fleet and far
from all into one engine. Each prefix is asked cold, then twice more in another order with new
questions after it, one call at a time: a time to first token is a prefill and the path, and no
queue. Policies take turns on the same engines, each through a router and a sidecar of its own
and with prefixes nobody has seen. The router's own memory of where it sent a prompt is off
(where there is a sidecar): what counts is what the engines' KV events say.

A row a policy. ``warm_on_holder``: first repeats that went to the worker that had the cold
call; ``warm_cached``: of the prefix tokens of all repeats, those the engine found cached.
"""

import asyncio
import itertools
import json
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.gpu_path_front import Callers, front, has_sidecar, say, until_followed
from benchmarks.random_model import SHAPES, write_random_model
from benchmarks.statistics import median, quantile
from chaos.process import ServiceProcess
from sidecache.v1 import worker_pb2, worker_pb2_grpc

# Tokens of a prefix; few enough with their question for a context of 4,096.
PREFIX_TOKENS = {"tiny": 500, "1b": 3500, "8b": 3500}
QUESTION_TOKENS = 40
ANSWER_TOKENS = 4
PREFIXES_EACH = 24
# Room for prompts of the moment, and for a fleet that is not filled evenly.
_FILL = 0.8
REPEATS = 2
ROUNDS = 2
POLICIES = ("prefix", "round_robin")
_CONTEXT = {"tiny": 1024, "1b": 4096, "8b": 4096}
_READY_S = 300.0
# Less than this share of a prefix is no hit.
_CACHED_WELL = 0.9

_seeds = itertools.count(1_000_000)


@dataclass
class Calls:
    """What came of the calls of one policy."""

    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    cold_at: list[str] = field(default_factory=list)
    warm_cached: list[int] = field(default_factory=list)
    on_holder: int = 0
    first_repeats: int = 0


@dataclass
class Fleet:
    """What runs.

    Attributes:
        callers: of each policy's router.
        kv_blocks: of each engine.
        block_size: tokens in one.
    """

    callers: dict[str, Callers]
    kv_blocks: list[int]
    block_size: int

    def prefixes(self, shape: str) -> int:
        """How many prefixes nearly fill all the caches."""
        blocks_each = -(-_prompt_tokens(shape) // self.block_size)
        return int(_FILL * sum(blocks // blocks_each for blocks in self.kv_blocks))


async def measure(options: Any, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every shape; what is known is written after each round."""
    results: list[dict[str, Any]] = []
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine
    # Killed outright, it would leave the engines' own processes behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for shape in options.shape:
        until = time.monotonic() + options.budget_s / len(options.shape)
        with tempfile.TemporaryDirectory(prefix="sc-") as name:
            async with running(Path(name), shape, options) as fleet:
                rows = {policy: Calls() for policy in POLICIES}
                for number in range(ROUNDS):
                    began = time.monotonic()
                    for policy in sorted(POLICIES, reverse=bool(number % 2)):
                        await ask(fleet, policy, shape, rows[policy])
                    told = [_row(fleet, shape, policy, calls) for policy, calls in rows.items()]
                    write(results + told)
                    say(json.dumps(told))
                    if 2 * time.monotonic() - began > until:
                        break
                results += told


async def ask(fleet: Fleet, policy: str, shape: str, calls: Calls) -> None:
    """One round of one policy: every prefix cold, then again."""
    prefixes = [next(_seeds) for _ in range(fleet.prefixes(shape))]
    chance = random.Random(prefixes[0])  # noqa: S311 - repeatable, not secret
    say(f"{policy}: {len(prefixes)} prefixes")
    cold = await _pass(fleet, policy, shape, prefixes)
    calls.cold_s += cold["first_token_s"]
    calls.cold_at += cold["workers"]
    holder = dict(zip(prefixes, cold["workers"], strict=True))
    for repeat in range(REPEATS):
        chance.shuffle(prefixes)
        warm = await _pass(fleet, policy, shape, prefixes)
        calls.warm_s += warm["first_token_s"]
        calls.warm_cached += [each or 0 for each in warm["cached_prompt_tokens"]]
        if not repeat:
            pairs = zip(prefixes, warm["workers"], strict=True)
            calls.on_holder += sum(holder[prefix] == worker for prefix, worker in pairs)
            calls.first_repeats += len(prefixes)


async def _pass(fleet: Fleet, policy: str, shape: str, prefixes: Sequence[int]) -> dict[str, Any]:
    """Each prefix once, with a new question, one after another."""
    return await fleet.callers[policy].ask(
        do="streams",
        rows=[[[prefix, next(_seeds)] for prefix in prefixes]],
        prompt_tokens=PREFIX_TOKENS[shape],
        question_tokens=QUESTION_TOKENS,
        max_tokens=ANSWER_TOKENS,
    )


def _row(fleet: Fleet, shape: str, policy: str, calls: Calls) -> dict[str, Any]:
    length = PREFIX_TOKENS[shape]
    cached = [min(each, length) for each in calls.warm_cached]
    return {
        "engine": "vllm",
        "shape": shape,
        "policy": policy,
        "engines": len(fleet.kv_blocks),
        "sidecar": has_sidecar(),
        "kv_tokens_each": [blocks * fleet.block_size for blocks in fleet.kv_blocks],
        "prefixes": fleet.prefixes(shape),
        "prefix_tokens": length,
        "cold_calls": len(calls.cold_s),
        "warm_calls": len(calls.warm_s),
        "ttft_cold_p50_ms": round(median(calls.cold_s) * 1e3, 2),
        "ttft_cold_p99_ms": round(quantile(calls.cold_s, 0.99) * 1e3, 2),
        "ttft_warm_mean_ms": round(sum(calls.warm_s) / len(calls.warm_s) * 1e3, 2),
        "ttft_warm_p50_ms": round(median(calls.warm_s) * 1e3, 2),
        "ttft_warm_p99_ms": round(quantile(calls.warm_s, 0.99) * 1e3, 2),
        "warm_on_holder": round(calls.on_holder / calls.first_repeats, 4),
        "warm_hits": round(sum(c >= _CACHED_WELL * length for c in cached) / len(cached), 4),
        "warm_cached": round(sum(cached) / (length * len(cached)), 4),
        "cold_by_worker": {name: calls.cold_at.count(name) for name in sorted(set(calls.cold_at))},
    }


def is_crossed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether, by prefix, repeats go where the prefix is, and none of it is computed again."""
    mine = [row for row in rows if row["policy"] == POLICIES[0]]
    return bool(mine) and all(
        min(row["warm_on_holder"], row["warm_hits"]) >= _CACHED_WELL for row in mine
    )


@asynccontextmanager
async def running(folder: Path, shape: str, options: Any) -> AsyncIterator[Fleet]:
    """The engines, and a router with its sidecar for each policy; all end with the block."""
    model = write_random_model(folder / shape, shape)
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:  # a start is minutes of mostly one thread each
            starting = [
                group.create_task(stack.enter_async_context(_start(model, shape, number, options)))
                for number in range(options.engines)
            ]
        addresses = [each.result().address for each in starting]
        say(f"{shape}: {len(addresses)} engines warm in {time.monotonic() - began:.0f} s")
        callers = {}
        for policy in POLICIES:
            more = {"routing__policy": policy, "lookup__lookup_timeout_s": "0.25"}
            if has_sidecar():
                more["routing__note_s"] = "0.001"
            router, cache = await stack.enter_async_context(
                front(folder, addresses, f"router-{policy}", **more)
            )
            callers[policy] = await stack.enter_async_context(Callers.start(router))
            if cache is not None:
                await until_followed(cache, len(addresses))
        facts = [await _kv_cache(address) for address in addresses]
        fleet = Fleet(callers, [blocks for blocks, _ in facts], facts[0][1])
        for policy in POLICIES:  # warm connections and kernels of this length
            await _pass(fleet, policy, shape, [next(_seeds) for _ in range(2 * len(addresses))])
        yield fleet


def _start(
    model: Path, shape: str, number: int, options: Any
) -> AbstractAsyncContextManager[ServiceProcess]:
    name = f"w{number + 1}"
    return ServiceProcess.start(
        "inference_svc",
        model.parent,
        _worker(model, shape, name, options),
        name=name,
        ready_timeout_s=_READY_S,
        environment={"CUDA_VISIBLE_DEVICES": str(number)} if options.gpu_each else {},
    )


def _worker(model: Path, shape: str, name: str, options: Any) -> dict[str, str]:
    """The settings of one engine."""
    tiny = shape == "tiny"
    chosen = {
        "load_format": "dummy",
        "enforce_eager": options.eager or tiny,
        "dtype": "float32" if tiny else "bfloat16",
        "max_model_len": _CONTEXT[shape],
        "kv_cache_mib": _kv_mib(shape),
        "block_size": 32 if tiny else None,
        "gpu_memory_utilization": round(0.8 / (1 if options.gpu_each else options.engines), 3),
    }
    settings = {
        "name": name, "engine": "vllm", "model_path": str(model), "model_name": shape,
        "telemetry__log_level": "ERROR",
    }  # fmt: skip
    return settings | {f"vllm__{k}": str(each) for k, each in chosen.items() if each is not None}


def _prompt_tokens(shape: str) -> int:
    return PREFIX_TOKENS[shape] + QUESTION_TOKENS + ANSWER_TOKENS


def _kv_mib(shape: str) -> int:
    """Memory for the keys and values of PREFIXES_EACH prompts."""
    hidden, _, layers, heads, kv_heads = SHAPES[shape]
    bytes_each = 4 if shape == "tiny" else 2
    a_token = 2 * layers * kv_heads * (hidden // heads) * bytes_each
    return -(-PREFIXES_EACH * _prompt_tokens(shape) * a_token >> 20)


async def _kv_cache(address: str) -> tuple[int, int]:
    """A worker's KV blocks, and the tokens in one."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        load = await stub.GetLoad(worker_pb2.GetLoadRequest(), timeout=5)
        model = await stub.GetModel(worker_pb2.GetModelRequest(), timeout=5)
    return load.kv_blocks, model.block_size
