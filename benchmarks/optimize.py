"""Plain, quantized, pruned and speculative settings of one engine, beside each other.

``python -m benchmarks.optimize --engine openvino --json - --plot FILE.png`` measures, for each
setting: tokens a second with 1 and 8 greedy streams, time to first token, the processor's time
for a token, memory of the engine's process, how far its greedy tokens agree with the plain run,
and how many tokens a step gives. Every setting has the engine to itself, one after another.
The processor's time is what a busy machine leaves comparable.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cpu_time import cpu_seconds
from benchmarks.optimize_plot import draw
from inference_svc.engine import Chat, ChatMessage, GenerationRequest
from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.openvino_settings import OpenVinoSettings
from inference_svc.slots import Slots
from sidecache import weights

MODEL = "smollm2-135m-instruct"
STREAMS = 8
# The last one's answer repeats its prompt, which is where a lookup guesses well.
PROMPTS = (
    "Write a short poem about the sea.",
    "Explain in three sentences why the sky is blue.",
    "Name four animals that live in a forest.",
    "How do I boil an egg?",
    "What is the capital of France, and what is it known for?",
    "Give me three tips for better sleep.",
    "Describe a train journey through mountains.",
    "Copy this sentence three times: The quick brown fox jumps over the lazy dog near the river.",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "KV f16": {"kv_cache_precision": "f16"},
    "KV u8": {"kv_cache_precision": "u8"},
    "int8 activations": {"activation_group_size": 32},
    "int8 act. + KV u8": {"activation_group_size": 32, "kv_cache_precision": "u8"},
    "prompt lookup": {"speculative": {"method": "prompt_lookup"}},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One stream.

    Attributes:
        ttft_s: from submission to the first token.
        steps: deltas, which are steps of the engine that gave it tokens.
    """

    ids: tuple[int, ...]
    ttft_s: float
    steps: int


class Pace(NamedTuple):
    """Tokens a second, and the engine's processor time a token in ms."""

    tok_s: float
    cpu_ms: float


class Stopwatch:
    """Wall time, and processor time of a process, from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = time.perf_counter()
        self._cpu_s = cpu_seconds(pid)

    def pace(self, runs: Sequence[Run]) -> Pace:
        """Of the streams that ran since."""
        tokens = sum(len(each.ids) for each in runs)
        wall_s = time.perf_counter() - self._begun
        return Pace(tokens / wall_s, (cpu_seconds(self._pid) - self._cpu_s) * 1000 / tokens)


@dataclass(frozen=True, slots=True)
class Result:
    """One setting's figures.

    Attributes:
        tok_s_1, tok_s_8: tokens a second with one stream, and of eight together.
        cpu_ms_1, cpu_ms_8: of all cores together, a token, with one stream and with eight.
        peak_mb: most resident memory of the engine's process so far.
        kv_tokens: what the KV cache holds; None: the engine does not say.
        same_answers: share of answers equal to the plain run's to the end.
        same_prefix: mean share of an answer's tokens before the first that differs.
        tokens_per_step: mean of one stream, above 1 only with guesses.
        accepted: share of guessed tokens that were kept; None without guesses.
    """

    setting: str
    model_mb: float
    tok_s_1: float
    tok_s_8: float
    ttft_p50_ms: float
    cpu_ms_1: float
    cpu_ms_8: float
    peak_mb: float
    kv_tokens: int | None
    same_answers: float
    same_prefix: float
    tokens_per_step: float
    accepted: float | None
    build: str


async def main() -> None:
    """Measure every setting, print a table and JSON, draw the plot."""
    flags = _flags()
    plain: list[Run] = []
    results: list[Result] = []
    for name, model, settings in _settings(flags):
        result, runs = await _measure(name, model, settings, flags, plain)
        plain = plain or runs
        results.append(result)
        print(_row(result), flush=True)
    if flags.json:
        text = json.dumps([asdict(each) for each in results], indent=1)
        print(text) if flags.json == "-" else Path(flags.json).write_text(text)
    if flags.plot:
        draw([asdict(each) for each in results], flags.plot)


def agreement(plain: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Share of the plain answer's tokens before the first that differs."""
    pairs = zip(plain, other, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(plain), len(other)))
    return same / max(len(plain), len(other), 1)


async def _measure(
    name: str, model: Path, settings: OpenVinoSettings, flags: argparse.Namespace, plain: list[Run]
) -> tuple[Result, list[Run]]:
    """Answers to all prompts one by one, then eight at once; several rounds, medians."""
    alone: list[Pace] = []
    together: list[Pace] = []
    runs: list[Run] = []
    async with _engine(model, settings) as engine:
        prompts = [await engine.tokenize(Chat((ChatMessage("user", each),))) for each in PROMPTS]
        for _ in range(flags.rounds):
            stopwatch = Stopwatch(engine.pid)
            runs = [await _run(engine, each, flags.tokens) for each in prompts]
            alone.append(stopwatch.pace(runs))
            stopwatch = Stopwatch(engine.pid)
            every = await asyncio.gather(*(_run(engine, each, flags.tokens) for each in prompts))
            together.append(stopwatch.pace(every))
        blocks, facts = engine.load_figures().kv_blocks, engine.facts
        peak_mb = _peak_mb(engine.pid)
    base = plain or runs
    shares = [agreement(a.ids, b.ids) for a, b in zip(base, runs, strict=True)]
    per_step = sum(len(each.ids) for each in runs) / sum(each.steps for each in runs)
    guesses = settings.speculative.num_tokens if settings.speculative else 0
    result = Result(
        setting=name,
        model_mb=round(_size(model) / 1e6, 1),
        tok_s_1=round(statistics.median(each.tok_s for each in alone), 1),
        tok_s_8=round(statistics.median(each.tok_s for each in together), 1),
        ttft_p50_ms=round(statistics.median(each.ttft_s for each in runs) * 1000, 1),
        cpu_ms_1=round(statistics.median(each.cpu_ms for each in alone), 2),
        cpu_ms_8=round(statistics.median(each.cpu_ms for each in together), 2),
        peak_mb=peak_mb,
        kv_tokens=blocks * facts.block_size if blocks else None,
        same_answers=round(sum(each == 1 for each in shares) / len(shares), 3),
        same_prefix=round(statistics.mean(shares), 3),
        tokens_per_step=round(per_step, 2),
        accepted=round((per_step - 1) / guesses, 3) if guesses else None,
        build=facts.build,
    )
    return result, runs


async def _run(engine: OpenVinoEngine, prompt: list[int], tokens: int) -> Run:
    begun = time.perf_counter()
    ids: list[int] = []
    first_s, steps = 0.0, 0
    async with engine.submit(GenerationRequest("optimize", tuple(prompt), tokens)) as deltas:
        async for delta in deltas:
            if delta.token_ids:
                first_s = first_s or time.perf_counter() - begun
                steps += 1
            ids += delta.token_ids
    return Run(tuple(ids), first_s, steps)


@asynccontextmanager
async def _engine(model: Path, settings: OpenVinoSettings) -> AsyncIterator[OpenVinoEngine]:
    engine = OpenVinoEngine(model, MODEL, settings, Slots(STREAMS, STREAMS))
    try:
        await engine.load()
        yield engine
    finally:
        await engine.aclose()


def _settings(flags: argparse.Namespace) -> list[tuple[str, Path, OpenVinoSettings]]:
    """Name, model and settings of each run; the plain one first."""
    model = flags.model or weights.pull(MODEL)
    common = {"inference_threads": flags.threads, "load_timeout_s": 600.0}
    chosen = [
        (name, model, OpenVinoSettings.model_validate(common | more))
        for name, more in SETTINGS.items()
    ]
    for other in flags.other:
        name, _, path = other.partition("=")
        chosen.append((name, Path(path), OpenVinoSettings.model_validate(common)))
    if flags.draft:
        speculative = {"method": "draft_model", "draft_model": flags.draft}
        drafted = OpenVinoSettings.model_validate(common | {"speculative": speculative})
        chosen.append(("draft model", model, drafted))
    return chosen


def _size(model: Path) -> int:
    return (
        model.stat().st_size
        if model.is_file()
        else sum(each.stat().st_size for each in model.glob("openvino_model.*"))
    )


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _row(result: Result) -> str:
    accepted = "" if result.accepted is None else f"{result.accepted:.0%}"
    return (
        f"{result.setting:20} {result.tok_s_1:7.1f} {result.tok_s_8:7.1f} tok/s "
        f"ttft {result.ttft_p50_ms:7.1f} ms  "
        f"cpu {result.cpu_ms_1:5.1f} {result.cpu_ms_8:5.1f} ms  rss {result.peak_mb:6.0f} MB  "
        f"kv {result.kv_tokens or 0:7d}  "
        f"same {result.same_answers:4.0%} {result.same_prefix:4.0%}  "
        f"{result.tokens_per_step:4.2f} tok/step {accepted}"
    )


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["openvino"], default="openvino")
    parser.add_argument("--model", type=Path, help="GGUF file or OpenVINO folder of the plain run")
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another model to measure plainly: pruned, distilled, other weights",
    )
    parser.add_argument("--draft", type=Path, help="folder of a draft model")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    parser.add_argument("--plot", type=Path, help="PNG file")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
