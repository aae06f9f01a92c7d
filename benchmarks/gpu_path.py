"""What the path costs in front of a real engine: direct, and through router, sidecar and worker.

    python -m benchmarks.gpu_path --engine vllm --shape 1b,8b --streams 1,64,256 --json -
    python -m benchmarks.gpu_path --engine vllm --shape tiny --streams 1,8 --json -    # on a CPU
    python -m benchmarks.gpu_path --engine vllm --shape 1b --engines 2 --eager --json -

One engine with random weights serves both ways in one run, in turns: its own generate()
called in its process, and callers in other processes that ask the router, which asks the
sidecar and the worker in front of the same engine. Prompts are new every time and no token
ends an answer, so both ways do the same work. A row is a number of streams:

- steady: so many closed loops (:mod:`benchmarks.steady`), windows of both ways in turns;
- burst: so many answers that all begin at once, on an idle engine. Then the fixed cost of a
  request comes as a queue, and a first token waits for those of all the others;
- first token: steady's, but with one stream of single short answers on an idle engine.

Lines: steady tokens a second through the path at least 98 % of direct at 64 and 256 streams;
at one stream at most 3 ms later to the first token. Then, all through gRPC: a cancel, the KV
events, and a long prompt cold and warm.

With ``--engines 2`` it is another benchmark, :mod:`benchmarks.gpu_prefixes`, and with
``--checkpoint FOLDER`` a third, :mod:`benchmarks.gpu_text`.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observability import grpc_runtime

grpc_runtime.prepare()  # the worker runs in this process, and as in its own

import grpc
import uvloop

from benchmarks import gpu_prefixes, gpu_text
from benchmarks.gpu_path_front import Callers, front, has_sidecar, say
from benchmarks.gpu_path_ways import Burst, Direct, Seeds, Through, Way
from benchmarks.random_model import SHAPES, write_random_model
from benchmarks.statistics import median, quantile
from benchmarks.steady import Tally
from inference_svc.engines.vllm import VllmEngine
from inference_svc.kv_ledger import KvLedger
from inference_svc.reachable_blocks import ReachableBlocks
from inference_svc.serve import serve_engine
from inference_svc.settings import WorkerSettings
from inference_svc.slots import Slots
from inference_svc.vllm_settings import VllmSettings
from observability.process import settle_memory
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.kv_blocks import unpack_hashes
from sidecache.v1 import worker_pb2 as worker_pb
from sidecache.v1 import worker_pb2_grpc

# Tokens of prompt and answer.
LENGTHS = {"tiny": (64, 32), "1b": (256, 256), "8b": (512, 256)}
LONG_PROMPT = {"tiny": 500, "1b": 3500, "8b": 3500}
ROUNDS = 3
FIRST_TOKENS = 40
CANCELS = 5
# One process of callers would be as busy as the worker.
CALLER_PROCESSES = 2
# The steady state begins when every caller has ended its first answer; so much longer than a
# burst of whole answers took.
_RAMP = 1.1


@dataclass
class Front:
    """What runs: the engine, and the callers of the router in front of it."""

    engine: VllmEngine
    worker: str
    router: str
    callers: Callers
    seeds: Seeds = field(default_factory=Seeds)


@dataclass
class Windows:
    """What one way gave in all its windows."""

    tokens_per_s: list[float] = field(default_factory=list)
    messages_per_token: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    answers: int = 0

    def add(self, tally: Tally, window_s: float) -> None:
        """Count one window."""
        if tally.short or not tally.tokens:
            raise SystemExit(f"{tally.short} answers were cut short, {tally.tokens} tokens came")
        self.tokens_per_s.append(tally.tokens / window_s)
        self.messages_per_token.append(tally.messages / tally.tokens)
        self.first_token_s += tally.first_token_s
        self.answers += tally.answers


async def compare(
    path: Front, shape: str, streams: int, window_s: float, late: Callable[[], bool]
) -> dict[str, Any]:
    """Both ways in turns; each round once one way first and once the other."""
    ways: dict[str, Way] = {
        "direct": Direct(path.engine, path.seeds),
        "path": Through(path.engine, path.callers, path.seeds),
    }
    bursts = {name: await way.burst(streams, *LENGTHS[shape]) for name, way in ways.items()}
    ramp_s = _RAMP * max(each.duration_s for each in bursts.values())
    rounds = {name: Windows() for name in ways}
    for number in range(ROUNDS):
        if number and late():
            break
        for name in sorted(ways, reverse=bool(number % 2)):
            begin = time.monotonic() + ramp_s
            window = (begin, begin + window_s)
            tally = await ways[name].steady(streams, *LENGTHS[shape], window)
            rounds[name].add(tally, window_s)
    if streams == 1:
        for each in rounds.values():
            each.first_token_s.clear()
        for number in range(FIRST_TOKENS):
            for name in sorted(ways, reverse=bool(number % 2)):
                one = await ways[name].burst(1, LENGTHS[shape][0], 4)
                rounds[name].first_token_s += one.first_token_s
    return _row(shape, streams, rounds, bursts)


def _row(
    shape: str, streams: int, rounds: dict[str, Windows], bursts: dict[str, Burst]
) -> dict[str, Any]:
    direct, path = rounds["direct"], rounds["path"]
    shares = [a / b for a, b in zip(path.tokens_per_s, direct.tokens_per_s, strict=True)]
    row: dict[str, Any] = {
        "shape": shape,
        "streams": streams,
        "tokens": LENGTHS[shape],
        "windows": len(shares),
        "direct_tok_s": round(median(direct.tokens_per_s), 1),
        "path_tok_s": round(median(path.tokens_per_s), 1),
        "path_share": round(median(shares), 4),
        "path_share_each": [round(each, 4) for each in shares],
        "direct_ttft_p50_ms": round(median(direct.first_token_s) * 1e3, 2),
        "path_ttft_p50_ms": round(median(path.first_token_s) * 1e3, 2),
        "messages_per_token": round(median(path.messages_per_token), 3),
        "answers": [direct.answers, path.answers],
    }
    for name, burst in bursts.items():
        row[f"burst_{name}_tok_s"] = round(burst.tokens / burst.duration_s, 1)
        row[f"burst_{name}_ttft_p50_ms"] = round(median(burst.first_token_s) * 1e3, 2)
        row[f"burst_{name}_ttft_p99_ms"] = round(quantile(burst.first_token_s, 0.99) * 1e3, 2)
    row["burst_share"] = round(row["burst_path_tok_s"] / row["burst_direct_tok_s"], 4)
    return row


async def cancels(path: Front, shape: str) -> dict[str, Any]:
    """From a caller's cancel, through the router, until the engine holds no sequence."""
    freed_ms = []
    for _ in range(CANCELS):
        done = await path.callers.ask(
            do="cancel", seed=path.seeds.take()[0], prompt_tokens=LENGTHS[shape][0],
            max_tokens=3000, after=3,
        )  # fmt: skip
        while path.engine.load_figures().running_sequences:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.0005)
        freed_ms.append((time.monotonic() - done["cancelled"]) * 1e3)
    return {"cancel_freed_p50_ms": round(median(freed_ms), 1), "cancel_freed_max_ms": max(freed_ms)}


async def prefixes(path: Front, shape: str) -> dict[str, Any]:
    """A long prompt cold and warm, and what the worker's gRPC says of its KV blocks."""
    length = LONG_PROMPT[shape]
    cold: list[float] = []
    warm: list[float] = []
    cached: list[int | None] = []
    # Tenants have salts of their own, so new names are counted and not compared.
    before = await told_blocks(path)
    seeds = path.seeds.take(5)
    for seed in seeds:
        for times, tokens in ((cold, 2), (warm, 3)):  # another length: no exact hit
            done = await path.callers.ask(
                do="streams", rows=[[seed]], prompt_tokens=length, max_tokens=tokens
            )
            times.extend(done["first_token_s"])
        cached += done["cached_prompt_tokens"]
    after = await told_blocks(path)
    return {
        "prefix_prompt_tokens": length,
        "ttft_cold_p50_ms": round(median(cold) * 1e3, 2),
        "ttft_warm_p50_ms": round(median(warm) * 1e3, 2),
        "cached_prompt_tokens": cached,
        "new_kv_blocks_over_grpc": None if after is None or before is None else len(after - before),
        "kv_blocks_of_the_prompts": len(seeds) * (length // path.engine.facts.block_size),
    }


async def told_blocks(path: Front) -> set[int] | None:
    """Names of the blocks that the worker's gRPC says it holds; None: it does not say."""
    held: set[int] = set()
    async with grpc.aio.insecure_channel(path.worker) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).SubscribeKvEvents(
            worker_pb.SubscribeKvEventsRequest(), timeout=5
        )
        try:
            async for event in call:
                held.update(unpack_hashes(event.snapshot.block_hashes))
                if not event.snapshot.more:
                    break
        except grpc.aio.AioRpcError as error:
            say(f"no KV events over gRPC: {error.code().name} {error.details()}")
            return None
    return held


@asynccontextmanager
async def running(folder: Path, shape: str, options: Any) -> AsyncIterator[Front]:
    """The engine and everything before it; all of it ends with the block."""
    model = options.checkpoint or write_random_model(folder / shape, shape)
    tiny = shape == "tiny"
    chosen = VllmSettings(
        load_format="auto" if options.checkpoint else "dummy",
        tensor_parallel=options.tensor_parallel,
        enforce_eager=options.eager or tiny,
        dtype="float32" if tiny else "bfloat16",
        max_model_len=4096,
        cpu_kv_cache_gib=1,
        block_size=32 if tiny else None,
        gpu_memory_utilization=0.85,
    )
    most = max(options.streams)
    settings = WorkerSettings(
        name="w1", engine="vllm", model_path=model, model_name=shape, max_sequences=most,
        max_waiting=most, vllm=chosen,
    )  # fmt: skip
    engine = VllmEngine(model, shape, chosen, Slots(most, most))
    ledger = KvLedger()
    engine.listen_kv(ReachableBlocks(ledger.record))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        began = time.monotonic()
        await engine.load()
        say(f"{shape}: loaded and warm in {time.monotonic() - began:.0f} s, {engine.facts.build}")
        telemetry = Telemetry.start("sidecache-worker", TelemetrySettings(log_level="ERROR"))
        stack.push_async_callback(telemetry.aclose)
        server = await stack.enter_async_context(serve_engine(engine, settings, telemetry, ledger))
        router, _ = await stack.enter_async_context(front(folder, [server.address]))
        callers = await stack.enter_async_context(Callers.start(router, CALLER_PROCESSES))
        settle_memory()
        yield Front(engine, server.address, router, callers)


async def warm_up(path: Front, shape: str) -> None:
    """Connections, caches, and the engine's kernels for batches of this size."""
    for way in (
        Direct(path.engine, path.seeds), Through(path.engine, path.callers, path.seeds)
    ):  # fmt: skip
        for streams in (2, 32):
            await way.burst(streams, LENGTHS[shape][0], 8)


async def measure_text(options: Any, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """Real weights: :mod:`benchmarks.gpu_text`."""
    name = options.checkpoint.name
    with tempfile.TemporaryDirectory(prefix="sc-") as own:
        async with running(options.folder or Path(own), name, options) as path:
            row = await gpu_text.compare(path.engine, options.checkpoint, path.router)
    write([row])
    say(json.dumps(row))


async def measure(options: Any, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every shape; what is known is written after each step."""
    began = time.monotonic()
    share_s: float = options.budget_s / len(options.shape)
    results: list[dict[str, Any]] = []
    for number, shape in enumerate(options.shape, 1):
        until = began + number * share_s

        def late(until: float = until) -> bool:
            return time.monotonic() > until - 0.25 * share_s

        with tempfile.TemporaryDirectory(prefix="sc-") as name:
            folder = options.folder or Path(name)
            async with running(folder, shape, options) as path:
                await warm_up(path, shape)
                about: dict[str, Any] = {"engine": "vllm", "build": path.engine.facts.build}
                about |= {
                    "sidecar": has_sidecar(),
                    "machine": platform.machine(),
                    "python": platform.python_version(),
                    "caller_processes": CALLER_PROCESSES,
                    "tensor_parallel": options.tensor_parallel,
                }
                for streams in options.streams:
                    row = await compare(path, shape, streams, options.window_s, late)
                    results.append(about | row)
                    write(results)
                    say(json.dumps({k: v for k, v in results[-1].items() if k not in about}))
                for extra in (cancels, prefixes):
                    for row in results:
                        if row["shape"] == shape:
                            last = row
                    last.update(await extra(path, shape))
                    write(results)
                    say(json.dumps({k: v for k, v in last.items() if k not in about}))


def main() -> int:
    """Run from the command line; 1 when a line was not crossed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["vllm"], default="vllm")
    parser.add_argument("--shape", type=lambda text: text.split(","), default=["1b", "8b"])
    parser.add_argument(
        "--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 64, 256]
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--budget-s", type=float, default=350, help="fewer rounds when it is short")
    parser.add_argument(
        "--folder", type=Path, help="for model files and logs; where it stays the same, so do "
        "the paths, and what vLLM has compiled is found again",
    )  # fmt: skip
    parser.add_argument("--window-s", type=float, default=5, help="counted of each steady run")
    parser.add_argument(
        "--engines", type=int, default=1, help="more: prefixes of long prompts over so many engines"
    )
    parser.add_argument(
        "--gpu-each", action="store_true", help="with --engines: a GPU for each of them"
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs of one engine")
    parser.add_argument(
        "--checkpoint", type=Path, help="real weights: whether greedy text is the engine's own"
    )
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    options = parser.parse_args()
    if unknown := set(options.shape) - set(SHAPES):
        parser.error(f"--shape {', '.join(unknown)} is not one of {', '.join(SHAPES)}")
    if not has_sidecar():
        say("no sidecar: it needs faiss and onnxruntime, which are not installed here")
    latest: list[dict[str, Any]] = []

    def write(results: list[dict[str, Any]]) -> None:
        latest[:] = results
        if options.json != "-":
            Path(options.json).write_text(json.dumps(results, indent=2) + "\n")

    several = options.engines > 1
    run = gpu_prefixes.measure if several else measure_text if options.checkpoint else measure
    try:
        uvloop.run(run(options, write))
    finally:
        if options.json == "-":
            sys.stdout.write(json.dumps(latest, indent=2) + "\n")
    if several:
        return 0 if gpu_prefixes.is_crossed(latest) else 1
    if options.checkpoint:
        return 0 if gpu_text.is_crossed(latest) else 1
    crossed = [
        row["path_share"] >= 0.98 if row["streams"] > 1  # noqa: PLR2004 - the lines above
        else row["path_ttft_p50_ms"] - row["direct_ttft_p50_ms"] <= 3  # noqa: PLR2004
        for row in latest
    ]  # fmt: skip
    return 0 if crossed and all(crossed) else 1


if __name__ == "__main__":
    sys.exit(main())
