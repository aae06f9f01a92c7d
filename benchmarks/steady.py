"""Closed loops, and what they get in a fixed window.

N callers ask one thing after another. What counts is what arrives within a window in the
middle: by then each has ended its first answer, whose length is another for each caller, so
that their answers begin and end spread over time, as independent callers' do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

# Prompts that one caller may ask for; each has a seed of its own.
SEEDS_EACH = 10_000

# ``await answer(seed, max_tokens, told)`` runs one stream and calls ``told(tokens)`` for
# each message as it comes.
Answer = Callable[[int, int, Callable[[int], None]], Awaitable[None]]


@dataclass
class Tally:
    """What arrived within the window.

    Attributes:
        first_token_s: of the answers asked for within it.
        short: answers that ended with another number of tokens than asked for.
    """

    tokens: int = 0
    messages: int = 0
    answers: int = 0
    short: int = 0
    first_token_s: list[float] = field(default_factory=list)

    def add(self, other: dict[str, Any]) -> None:
        """What another process counted."""
        self.tokens += other["tokens"]
        self.messages += other["messages"]
        self.answers += other["answers"]
        self.short += other["short"]
        self.first_token_s += other["first_token_s"]


async def closed_loops(
    answer: Answer,
    streams: range,
    of: int,
    max_tokens: int,
    first_seed: int,
    window: tuple[float, float],
) -> Tally:
    """Run callers until the window ends; then all are cancelled.

    Args:
        answer: how a stream is run.
        streams: which of the callers run in this process.
        of: callers in all processes.
        max_tokens: of an answer.
        first_seed: of ``of`` times SEEDS_EACH.
        window: from and to, on the monotonic clock.
    """
    tally = Tally()
    loops = [
        asyncio.create_task(
            _caller(
                answer,
                max_tokens,
                max(1, max_tokens * (number + 1) // of),
                first_seed + number * SEEDS_EACH,
                window,
                tally,
            )
        )
        for number in streams
    ]
    await asyncio.wait(loops, timeout=window[1] - time.monotonic(), return_when="FIRST_EXCEPTION")
    for each in loops:
        each.cancel()
    for each in loops:
        with suppress(asyncio.CancelledError):
            await each
    return tally


async def _caller(
    answer: Answer,
    max_tokens: int,
    first_tokens: int,
    seed: int,
    window: tuple[float, float],
    tally: Tally,
) -> None:
    length = first_tokens
    while True:
        seen = await _one(answer, seed, length, window, tally)
        tally.short += seen != length
        length = max_tokens
        seed += 1


async def _one(
    answer: Answer, seed: int, length: int, window: tuple[float, float], tally: Tally
) -> int:
    begin, end = window
    began, seen = time.monotonic(), 0

    def told(tokens: int) -> None:
        nonlocal seen
        now = time.monotonic()
        if tokens and not seen and began >= begin:
            tally.first_token_s.append(now - began)
        seen += tokens
        if begin <= now < end:
            tally.tokens += tokens
            tally.messages += 1

    await answer(seed, length, told)
    tally.answers += begin <= time.monotonic() < end
    return seen
