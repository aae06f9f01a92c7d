"""The second worker of a request: heard once, or not at all."""

import asyncio
from contextlib import ExitStack

from router.lease import Lease
from router.passage import Passage
from router.rival import Rival
from router.tape import Tape
from tests.unit.router.fleet import Clock, chat, make_ticket, make_worker
from tests.unit.router.flying import steps
from tests.unit.router.test_hedging import hedging


def passage(name: str, clock: Clock) -> Passage:
    """A worker's part of a stream that has no token yet."""
    ticket = make_ticket(chat("hello"))
    tape = Tape(ticket, 1 << 20, clock)
    return Passage(Lease(make_worker(name)), ticket, tape, None, clock, is_exact=True)


async def begun(rival: Rival, first: Passage) -> None:
    """Return once the second worker was asked."""
    rival.stand_by(first, [first.worker, make_worker("other")])
    while not rival.has_begun:
        await asyncio.sleep(0)
    await steps(3)


async def test_a_first_worker_that_spoke_and_failed_leaves_nobody_to_wait_for() -> None:
    """Its token ended the second one; its failure is no cancellation of the request."""
    clock = Clock()
    first = passage("first", clock)

    async def never(_stack: ExitStack) -> Passage:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    with Rival(hedging(clock, after_s=0.001), never) as rival:
        await begun(rival, first)
        first.heard_tokens()
        assert await rival.winner() is None


async def test_a_stream_that_won_is_taken_once() -> None:
    """Who loses the worker that won goes on elsewhere, and not at its dead stream again."""
    clock = Clock()
    second = passage("second", clock)

    async def at_once(_stack: ExitStack) -> Passage:
        return second

    with Rival(hedging(clock, after_s=0.001), at_once) as rival:
        await begun(rival, passage("first", clock))
        assert await rival.winner() is second
        assert rival.has_won() is second
        assert rival.take() is second
        assert rival.has_won() is None
        assert rival.take() is None
        assert await rival.winner() is None
