"""Real engines, real prompts: time to first token by prefix and in turns, in one run.

    python -m benchmarks.prefix_real --trace FILE.jsonl.gz --calls 60 --workers 3 --json -

The calls of coding agents (rows with ``session_id``, ``timestamp`` and ``input``), each cut to
its first ``--prompt-tokens`` tokens, go one at a time through a router and its sidecar to
OpenVINO workers on this machine. One at a time, since all workers share its cores: a time to
first token is then a prefill and the path, and no queue. Sessions are dealt to blocks;
in a block its sessions' calls are mixed by chance. Each block is run by both policies in
turn, the first of them alternating, on the same workers; a line of its own at the head of each
policy's prompts keeps it from finding what the other has left, so both begin cold. The answer
cache is bypassed.

``prefill_cpu_s`` is what the workers' processes ran for the policy: on a busy machine the one
figure that other work does not touch. ``cached_tokens`` are those that the workers told, of which
``estimated_calls`` are a model's word (OpenVINO GenAI tells nothing of it); how well they agree
with what was measured is ``ttft_correlation``, of each call's uncached tokens and its time to
first token over both policies, 1 at best. A call that fails is counted and left out.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import Any

from benchmarks.cpu_time import cpu_seconds
from benchmarks.gpu_path_front import KEY, front, say, until_followed
from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from sidecache import weights
from sidecache.client import CacheControl, Completion, SidecacheClient
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2 as pb

POLICIES = ("prefix", "round_robin")
SESSIONS_A_BLOCK = 4
ANSWER_TOKENS = 4
# The line that keeps policies apart, and a margin for where a cut text is cut again.
_MARK_TOKENS = 16
_READY_S = 180.0
_CALL_S = 300.0
_BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)


@dataclass(frozen=True, slots=True)
class Call:
    """What came of one call."""

    worker: str
    prompt_tokens: int
    cached_tokens: int
    estimated: bool
    ttft_s: float

    @classmethod
    def of(cls, answer: Completion) -> "Call":
        """As the answer tells it."""
        usage = answer.usage
        return cls(
            answer.worker,
            usage.prompt_tokens,
            usage.cached_prompt_tokens,
            usage.cached_prompt_tokens_estimated,
            round(answer.ttft_s or 0.0, 3),
        )


@dataclass
class Tally:
    """What came of the calls of one policy."""

    calls: list[Call] = field(default_factory=list)
    failed: int = 0
    cpu_s: float = 0.0


def read_sessions(trace: Path, sessions: int, calls: int) -> list[list[str]]:
    """The first calls of as many sessions, in the order of their time.

    Raises:
        SystemExit: there are not so many.
    """
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    with gzip.open(trace, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            rows[row["session_id"]].append((row["timestamp"], row["input"]))
    long = [sorted(each)[:calls] for each in rows.values() if len(each) >= calls]
    if len(long) < sessions:
        raise SystemExit(f"{trace} has {len(long)} sessions of {calls} calls, not {sessions}")
    return [[text for _, text in each] for each in long[:sessions]]


def cut(texts: Sequence[str], tokens: int) -> list[str]:
    """The same, each only its first tokens."""
    tokenizer = GgufTokenizer(read_gguf(weights.locate("smollm2-135m-instruct")))
    # A cut may fall into a character: what is left of it decodes to U+FFFD.
    return [tokenizer.decode(tokenizer.encode(each)[:tokens]).rstrip("\ufffd") for each in texts]


def mixed(sessions: Sequence[Sequence[str]], seed: int) -> list[str]:
    """Calls of several sessions by chance, each session's in its order."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    turns = [number for number, calls in enumerate(sessions) for _ in calls]
    chance.shuffle(turns)
    waiting = [iter(calls) for calls in sessions]
    return [next(waiting[number]) for number in turns]


async def ask(client: SidecacheClient, mark: str, prompts: Sequence[str], tally: Tally) -> None:
    """One prompt after another."""
    for number, prompt in enumerate(prompts, 1):
        try:
            answer = await client.complete(
                text=f"[{mark}]\n{prompt}", max_tokens=ANSWER_TOKENS, cache=_BYPASS,
                timeout_s=_CALL_S,
            )  # fmt: skip
        except SidecacheError as error:
            tally.failed += 1
            say(f"{mark}: call {number} of {len(prompts)} failed: {error}")
            continue
        call = Call.of(answer)
        tally.calls.append(call)
        say(f"{mark}: call {number} of {len(prompts)}: {json.dumps(asdict(call))}")


def row(policy: str, tally: Tally) -> dict[str, Any]:
    """One policy's figures.

    Raises:
        SystemExit: none of its calls came through.
    """
    calls = tally.calls
    if not calls:
        raise SystemExit(f"no call by {policy} came through")
    ttft_s = [call.ttft_s for call in calls]
    prompt_tokens = sum(call.prompt_tokens for call in calls)
    cached_tokens = sum(call.cached_tokens for call in calls)
    workers = [call.worker for call in calls]
    return {
        "policy": policy,
        "calls": len(calls),
        "failed": tally.failed,
        "prompt_tokens_mean": round(prompt_tokens / len(calls)),
        "cached_tokens": cached_tokens,
        "estimated_calls": sum(call.estimated for call in calls),
        "hit_rate": round(cached_tokens / prompt_tokens, 4),
        "ttft_mean_s": round(sum(ttft_s) / len(ttft_s), 3),
        "ttft_p50_s": round(quantile(ttft_s, 0.5), 3),
        "ttft_p99_s": round(quantile(ttft_s, 0.99), 3),
        "prefill_cpu_s": round(tally.cpu_s, 1),
        "by_worker": {name: workers.count(name) for name in sorted(set(workers))},
    }


def ttft_correlation(tallies: Iterable[Tally]) -> float | None:
    """Pearson's, of uncached tokens and TTFT over all calls; None where nothing varies."""
    calls = [call for tally in tallies for call in tally.calls]
    uncached = [call.prompt_tokens - call.cached_tokens for call in calls]
    try:
        return round(correlation(uncached, [call.ttft_s for call in calls]), 3)
    except StatisticsError:
        return None


@asynccontextmanager
async def running(
    folder: Path, workers: int
) -> AsyncIterator[tuple[dict[str, SidecacheClient], list[int]]]:
    """A client of each policy's router, and the workers' process ids."""
    async with AsyncExitStack() as stack:
        fleet = []
        for name in [f"w{number}" for number in range(1, workers + 1)]:
            start = ServiceProcess.start(
                "inference_svc", folder, {"name": name}, name=name, ready_timeout_s=_READY_S
            )
            fleet.append(await stack.enter_async_context(start))
        addresses = [each.address for each in fleet]
        clients = {}
        for policy in POLICIES:
            # The cores are busy with prefills: a lookup's 50 ms would often be over.
            more = {"routing__policy": policy, "lookup__lookup_timeout_s": "2"}
            router, cache = await stack.enter_async_context(
                front(folder, addresses, f"router-{policy}", **more)
            )
            if cache is not None:
                await until_followed(cache, workers)
            client = SidecacheClient(router, api_key=KEY)
            clients[policy] = await stack.enter_async_context(client)
        yield clients, [each.pid for each in fleet]


def tree_cpu_s(roots: Sequence[int]) -> float:
    """CPU seconds of these processes and of the children they have now."""
    wanted, total = set(roots), 0.0
    while wanted:
        total += sum(cpu_seconds(pid) for pid in wanted)
        wanted = {
            int(child)
            for pid in wanted
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        }
    return total


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every block by both policies; fewer blocks when time is short."""
    sessions = options.blocks * SESSIONS_A_BLOCK
    calls = max(1, options.calls // sessions)
    length = options.prompt_tokens - _MARK_TOKENS
    chosen = [cut(each, length) for each in read_sessions(options.trace, sessions, calls)]
    tallies = {policy: Tally() for policy in POLICIES}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        async with running(Path(name), options.workers) as (clients, pids):
            began = time.monotonic()
            for block in range(options.blocks):
                took_s = time.monotonic() - began
                if block and took_s * (block + 1) / block > options.budget_s:
                    say(f"out of time after {block} blocks of {options.blocks}")
                    break
                first = block * SESSIONS_A_BLOCK
                prompts = mixed(chosen[first : first + SESSIONS_A_BLOCK], seed=block)
                for policy in sorted(POLICIES, reverse=bool(block % 2)):
                    before = tree_cpu_s(pids)
                    await ask(clients[policy], f"{policy} {block}", prompts, tallies[policy])
                    tallies[policy].cpu_s += tree_cpu_s(pids) - before
                    say(json.dumps(row(policy, tallies[policy])))
    rows = [row(policy, tally) for policy, tally in tallies.items()]
    return {
        "workers": options.workers,
        "sessions": sessions,
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "policies": rows,
        "ttft_mean_ratio": round(rows[0]["ttft_mean_s"] / rows[1]["ttft_mean_s"], 3),
        "prefill_cpu_ratio": round(rows[0]["prefill_cpu_s"] / rows[1]["prefill_cpu_s"], 3),
        "ttft_correlation": ttft_correlation(tallies.values()),
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=3, help=f"of {SESSIONS_A_BLOCK} sessions")
    parser.add_argument("--budget-s", type=float, default=780, help="fewer blocks when it is short")
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    text = json.dumps(asyncio.run(measure(options)), indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        Path(options.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
