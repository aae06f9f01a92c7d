"""A burst that is read in turns: others run in between, and nothing is waited for twice."""

import asyncio
from collections.abc import AsyncIterator

from inference_svc.engines.in_turns import InTurns


class Clock:
    """Goes on by itself with every line."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def burst(clock: Clock, count: int, each_s: float) -> AsyncIterator[bytes]:
    """Lines that are all there; each takes its reader a while."""
    for number in range(count):
        clock.now_s += each_s
        yield b"%d" % number


async def turns_of_others(lines: AsyncIterator[bytes], clock: Clock) -> tuple[int, list[bytes]]:
    """How often somebody else had a turn while this was read, and what was read."""
    turns, reading = 0, InTurns(lines, clock)

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    read: list[bytes] = []
    while (line := await reading.next()) is not None:
        read.append(line)
    task.cancel()
    return turns, read


async def test_others_run_during_a_burst() -> None:
    """After each 2 ms of it they have a turn, and no line is lost or moved."""
    clock = Clock()
    turns, read = await turns_of_others(burst(clock, 100, 0.0005), clock)
    assert read == [b"%d" % number for number in range(100)]
    assert 18 <= turns <= 25  # of 50 ms


async def test_a_short_burst_is_read_at_once() -> None:
    """A turn for every line would cost more than it gives."""
    clock = Clock()
    turns, read = await turns_of_others(burst(clock, 100, 0.00001), clock)
    assert len(read) == 100
    assert turns == 0


async def test_what_was_waited_for_needs_no_turn() -> None:
    """Lines that come one by one leave others their time anyhow."""
    clock = Clock()
    turns, _ = await turns_of_others(burst(clock, 100, 0.01), clock)
    assert turns == 0
