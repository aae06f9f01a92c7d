"""What a token costs a worker: its engine's sequences read one by one, and pulled.

    python -m benchmarks.pulled_streams MODEL.gguf --json -

MODEL is a GGUF file or a checkpoint folder, for its tokenizer. A make-believe engine gives
every sequence one token a step; both ways read the same sequences up to the messages that
a worker would write, at the distance that a worker keeps. CPU time of the process counts,
in turns, and the median of the rounds is told. What the engine itself costs is in both.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from itertools import product
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.statistics import median
from inference_svc.choice import Choice
from inference_svc.engine import FinishReason, GenerationRequest
from inference_svc.engines.local_tokenizer import LocalTokenizer, read_tokenizer
from inference_svc.engines.pulled_stream import PulledStream
from inference_svc.engines.sequence_stream import SequenceStream, Step
from inference_svc.messages import messages
from inference_svc.slots import Slots
from sidecache.errors import EngineFailed, SidecacheError

MESSAGES_PER_S = 1000
STOP = ("never said \0", "nor this \0")
WAYS = {"one by one": SequenceStream, "pulled": PulledStream}
TEXT = "The sea is blue, and wide, and older than any word that we have for it. "


class Sequence:
    """Outputs of one sequence, merged while nobody takes them, as vLLM merges them."""

    def __init__(self, tokens: int, tell: Callable[[bool], None]) -> None:
        self.left = tokens
        self._tell = tell
        self._waiting: Step | None = None

    def give(self, token_id: int) -> None:
        """The next token."""
        self.left -= 1
        ended = None if self.left else FinishReason.LENGTH
        if self._waiting is None:
            self._waiting = Step([token_id], [], ended, 0)
        else:
            self._waiting = Step([*self._waiting.token_ids, token_id], [], ended, 0)
        self._tell(not self.left)

    def take(self) -> Step | None:
        """All that nobody has taken."""
        taken, self._waiting = self._waiting, None
        return taken

    async def abort(self) -> None:
        """No sequence is left before its end here."""


class Engine:
    """Steps at a fixed rate, and gives each sequence the next token of one text."""

    def __init__(self, text: list[int], step_s: float) -> None:
        self._text = text
        self._step_s = step_s
        self._running: list[Sequence] = []

    async def run(self) -> None:
        """Step until cancelled."""
        number = 0
        while True:
            await asyncio.sleep(self._step_s)
            number += 1
            for sequence in self._running:
                sequence.give(self._text[number % len(self._text)])
            self._running = [each for each in self._running if each.left]

    async def add(
        self,
        request: GenerationRequest,
        prompt: list[int],
        done: int,
        seed: int,
        tell: Callable[[bool], None],
    ) -> Sequence:
        """A sequence to be taken from."""
        self._running.append(Sequence(request.max_tokens, tell))
        return self._running[-1]

    async def generate(
        self, request: GenerationRequest, prompt: list[int], done: int, seed: int
    ) -> AsyncGenerator[Step, None]:
        """A sequence that is waited at, as AsyncLLM.generate does."""
        ready = asyncio.Event()
        sequence = await self.add(request, prompt, done, seed, lambda _: ready.set())
        while True:
            while (step := sequence.take()) is None:
                ready.clear()
                await ready.wait()
            yield step

    def read(self, output: Step, wanted: int | None) -> Step:
        """Outputs are steps already."""
        return output

    def failed(self, error: Exception) -> SidecacheError:
        """It does not fail."""
        return EngineFailed(str(error))


async def measure(
    way: str, tokenizer: LocalTokenizer, request: GenerationRequest, sequences: int, step_s: float
) -> tuple[float, float]:
    """CPU µs a token, and tokens a message."""
    engine, slots = Engine(tokenizer.encode(TEXT), step_s), Slots(sequences, 0)
    streams, counted, written = sequences // request.n, 0, 0

    async def read() -> None:
        nonlocal counted, written
        choices = [Choice(n, tokenizer.decoder(), request.stop) for n in range(request.n)]
        deltas = WAYS[way](request, choices, frozenset(), engine, slots)
        async with messages(deltas, 64, lambda: streams / MESSAGES_PER_S) as told:
            while not told.complete:
                delta = await told.take(60)
                if delta is not None:
                    counted += len(delta.token_ids)
                    written += 1

    stepping = asyncio.create_task(engine.run())
    began = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(read())
    spent_s = time.process_time() - began
    stepping.cancel()
    if counted != streams * request.n * request.max_tokens:
        raise SystemExit(f"{counted} tokens came")
    return spent_s / counted * 1e6, counted / written


async def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each kind of request and way."""
    tokenizer = read_tokenizer(arguments.model)
    rows = []
    for n, stop in product((1, 4), ((), STOP)):
        request = GenerationRequest("r", (1,), arguments.tokens, n=n, stop=stop)
        figures: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _, way in product(range(arguments.rounds), WAYS):
            figures[way].append(
                await measure(way, tokenizer, request, arguments.sequences, arguments.step_s)
            )
        rows += [
            {
                "n": n,
                "stop_strings": len(stop),
                "way": way,
                "cpu_us_per_token": round(median([cpu for cpu, _ in told]), 1),
                "tokens_per_message": round(median([tokens for _, tokens in told]), 1),
            }
            for way, told in figures.items()
        ]
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--step-s", type=float, default=0.015)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", required=True, help="a file, or - for the screen")
    given = parser.parse_args()
    text = json.dumps(uvloop.run(compare(given)), indent=1)
    if given.json == "-":
        print(text)
    else:
        Path(given.json).write_text(text)
