"""What a client sees while workers are killed under its streams, one after the other.

    python -m benchmarks.survival --json -
    python -m benchmarks.survival --signal STOP --json -
    python -m benchmarks.survival --engine openvino --model PATH --streams 40 --tokens 48 \
        --in-flight 4 --workers 2 --kill-every-s 8 --json -

Starts workers and a router as processes, keeps so many streams in flight, and strikes a
worker at each interval: SIGKILL and a start at the same address, or SIGSTOP for a while.
Every stream goes through the history checker (chaos/checker.py) when it ends. The scripted
engine's answers are known beforehand; a real engine's are those of a run in which nothing
was struck.

The gap of a migration is the time from the last token before it to the first one after it,
less the median gap of the same stream.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.recorded_reference import RecordedReference
from benchmarks.statistics import median, quantile
from benchmarks.survival_stage import Stage, StagePlan
from chaos.checker import check
from chaos.history import Call, History, Received
from chaos.recorder import Recorder
from chaos.reference import Reference, ScriptedReference
from chaos.violations import Lost, Reordered, Repeated
from sidecache.v1 import inference_pb2 as pb

# What a call may end with before its first token.
REFUSALS = frozenset(("UNAVAILABLE", "RESOURCE_EXHAUSTED"))
# Of a real engine: few, so that each can be answered without a strike first.
QUESTIONS = (
    "Write a short poem about a river — with em dashes.",
    "List five French words with accents and what they mean.",
    "What is the capital of Japan? Answer in one sentence.",
    "Explain why the sky is blue to a child.",
    "Count from one to twenty in words.",
    "Name three uses of copper.",
)


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        streams: in all; of ``tokens`` tokens each, ``in_flight`` at a time.
        token_s: time between two tokens of the scripted engine.
        burst: tokens that come together there, for machines that cannot carry a message
            for each.
        model: file or folder of a real engine.
        timeout_s: deadline of one stream.
    """

    streams: int = 10_000
    tokens: int = 200
    in_flight: int = 200
    workers: int = 6
    kill_every_s: float = 1.0
    signal: str = "KILL"
    stopped_s: float = 2.0
    engine: str = "scripted"
    model: str = ""
    token_s: float = 0.02
    burst: int = 4
    timeout_s: float = 120.0

    def stage(self) -> StagePlan:
        """The processes it needs."""
        room = str(max(16, self.in_flight))
        worker = {"engine": self.engine, "max_sequences": room, "max_waiting": room}
        # The client shares the machine with all this; a busy client is not a vanished one.
        router = {"server__keepalive_timeout_s": "10"}
        worker |= router
        # Nor is a worker gone that takes seconds to start; how long streams wait is measured.
        router |= {"limits__migration_wait_s": "20", "pool__max_backoff_s": "0.5"}
        if self.engine == "scripted":
            worker["scripted__tokens_per_s"] = str(1 / self.token_s)
            worker["scripted__ttft_s"] = str(self.token_s)
            worker["scripted__burst"] = str(self.burst)
        else:
            worker["model_path"] = self.model
            worker["max_sequences"] = "16"
            # A real engine on few cores is slow, and slow is not hung.
            router |= {"limits__token_silence_s": "10", "limits__migration_wait_s": "60"}
        return StagePlan(
            self.workers,
            worker,
            router,
            self.kill_every_s,
            self.signal,
            self.stopped_s,
            self.engine == "scripted",
        )

    def request(self, number: int) -> pb.GenerateRequest:
        """What stream ``number`` asks; never answered from a cache."""
        bypass = pb.CacheControl(mode=pb.CACHE_MODE_BYPASS)
        request = pb.GenerateRequest(max_tokens=self.tokens, cache=bypass)
        if self.engine == "scripted":
            request.text = f"stream {number}"
        else:
            question = QUESTIONS[number % len(QUESTIONS)]
            request.chat.messages.add(role="user", content=question)
        return request


@dataclass
class Tally:
    """What became of the streams; a stream's events are let go of once it is counted."""

    reference: Reference
    streams: int = 0
    migrated: int = 0
    began_again: int = 0
    exact: int = 0
    refused_before_first: int = 0
    interrupted: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    wrong: int = 0
    moves: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    gaps_s: list[float] = field(default_factory=list)
    paces_s: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def take(self, call: Call) -> None:
        """Check one stream that has ended, and count it."""
        self.streams += 1
        self.codes[call.code] += 1
        self._judge(call)
        offsets = [event.migrated.offset for event in call.events() if event.HasField("migrated")]
        moves = sum(offset > 0 for offset in offsets)
        self.moves[moves] += 1
        self.migrated += bool(moves)
        self.began_again += 0 in offsets
        usual = list(call.gaps())
        if usual:
            self.paces_s.append(median(usual))
            self.gaps_s += [max(0.0, gap - median(usual)) for gap in move_gaps(call)]
        call.entries.clear()

    def _judge(self, call: Call) -> None:
        violations = check([call], self.reference, closed_world=False).violations
        for violation in violations:
            match violation:
                case Lost():
                    self.lost += 1
                case Repeated():
                    self.repeated += 1
                case Reordered():
                    self.reordered += 1
                case _:
                    self.wrong += 1
        if violations:
            self.complaints += [str(violation) for violation in violations[:3]]
        elif call.code == "OK":
            self.exact += 1
        elif call.ttft_s is None and call.code in REFUSALS:
            self.refused_before_first += 1
        else:
            self.interrupted += 1
            text = call.ended.text if call.ended else "no end"
            self.reasons[text.rpartition("), and ")[2]] += 1
            self.complaints.append(f"{call.code}: {text}")

    def figures(self) -> dict[str, Any]:
        """The keys that docs/performance.md describes."""
        return {
            "streams": self.streams,
            "migrated": self.migrated,
            "exact": self.exact,
            "refused_before_first": self.refused_before_first,
            "lost": self.lost,
            "repeated": self.repeated,
            "reordered": self.reordered,
            "wrong": self.wrong,
            "interrupted": self.interrupted,
            "began_again": self.began_again,
            "gap_p50_s": quantile(self.gaps_s, 0.5) if self.gaps_s else None,
            "gap_p99_s": quantile(self.gaps_s, 0.99) if self.gaps_s else None,
            "gap_max_s": max(self.gaps_s, default=None),
            "pace_p50_s": quantile(self.paces_s, 0.5) if self.paces_s else None,
            "pace_p99_s": quantile(self.paces_s, 0.99) if self.paces_s else None,
            "moves_a_stream": {str(count): self.moves[count] for count in sorted(self.moves)},
            "codes": dict(self.codes),
            "interrupted_because": dict(self.reasons),
            "complaints": self.complaints[:10],
        }


def move_gaps(call: Call) -> Iterator[float]:
    """Of each migration after the first token: last token before it to first token after."""
    last_s: float | None = None
    moving = False
    for entry in call.entries:
        if not isinstance(entry, Received):
            continue
        if entry.event.HasField("migrated") and entry.event.migrated.offset > 0:
            moving = True
        if entry.event.delta.token_ids:
            if moving and last_s is not None:
                yield entry.at_s - last_s
            last_s, moving = entry.at_s, False


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Play one run.

    Raises:
        ServiceDied: a process did not start.
        RuntimeError: a real engine gave no answer to compare with.
    """
    async with Stage.open(plan.stage(), folder) as stage:
        channel = grpc.aio.insecure_channel(stage.router.address)
        async with channel:
            recorder = Recorder(channel, History(max_calls=plan.streams + len(QUESTIONS)))
            reference = await _reference(plan, recorder)
            tally = Tally(reference)
            began = time.monotonic()
            striking = asyncio.create_task(stage.strike_on()) if plan.kill_every_s else None
            try:
                await _ask_all(plan, recorder, tally)
            finally:
                if striking is not None:
                    striking.cancel()
                    await asyncio.gather(striking, return_exceptions=True)
            back_s = stage.strikes.back_s
            return {
                **tally.figures(),
                "struck": stage.strikes.struck,
                "held_back": stage.strikes.held_back,
                "worker_back_p50_s": quantile(back_s, 0.5) if back_s else None,
                "seconds": time.monotonic() - began,
                "plan": asdict(plan),
            }


async def _reference(plan: Plan, recorder: Recorder) -> Reference:
    if plan.engine == "scripted":
        return ScriptedReference()
    calls = [
        await recorder.generate(plan.request(number), timeout_s=plan.timeout_s)
        for number in range(len(QUESTIONS))
    ]
    return RecordedReference.of(calls)


async def _ask_all(plan: Plan, recorder: Recorder, tally: Tally) -> None:
    numbers = iter(range(plan.streams))
    # Streams that all began together would all end together.
    spread_s = plan.tokens * plan.token_s / plan.in_flight

    async def client(place: int) -> None:
        await asyncio.sleep(place * spread_s)
        for number in numbers:
            call = await recorder.generate(plan.request(number), timeout_s=plan.timeout_s)
            tally.take(call)

    async with asyncio.TaskGroup() as clients:
        for place in range(plan.in_flight):
            clients.create_task(client(place))


def holds(figures: dict[str, Any]) -> bool:
    """Whether nothing was lost and nobody was cut off after a first token."""
    whole = figures["exact"] + figures["refused_before_first"]
    return bool(whole == figures["streams"])


def main() -> int:
    """Read the command line, run, print; exit code 1 when a stream was not whole."""
    default = Plan()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=default.streams)
    parser.add_argument("--tokens", type=int, default=default.tokens)
    parser.add_argument("--in-flight", type=int, default=default.in_flight)
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--kill-every-s", type=float, default=default.kill_every_s)
    parser.add_argument("--signal", choices=("KILL", "STOP"), default=default.signal)
    parser.add_argument("--stopped-s", type=float, default=default.stopped_s)
    parser.add_argument("--engine", choices=("scripted", "openvino"), default=default.engine)
    parser.add_argument("--model", default=default.model, help="of a real engine")
    parser.add_argument("--token-s", type=float, default=default.token_s)
    parser.add_argument("--burst", type=int, default=default.burst)
    parser.add_argument("--json", required=True, metavar="PATH", help="- for stdout")
    options = vars(parser.parse_args())
    path = options.pop("json")
    with tempfile.TemporaryDirectory(prefix="survival-") as folder:
        figures = uvloop.run(run(Plan(**options), Path(folder)))
    text = json.dumps(figures, indent=1)
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text + "\n")
    return 0 if holds(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
