"""The stall guard."""

import asyncio
from collections.abc import Callable

import pytest

from router.stall import StallGuard
from sidecache.errors import EngineFailed, StreamInterrupted


async def _stall(guard: StallGuard, wait_for: Callable[[StallGuard], None]) -> None:
    with guard:
        wait_for(guard)
        await asyncio.Event().wait()


async def test_a_silent_worker_is_an_engine_failure() -> None:
    """The wait for the worker is bounded, and the error says who was waited for."""
    with pytest.raises(EngineFailed, match=r"worker sent nothing for 0.02 s"):
        await _stall(StallGuard(worker_s=0.02, reader_s=60), StallGuard.waits_for_worker)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    """The wait for the client is bounded by its own limit."""
    with pytest.raises(StreamInterrupted, match=r"client read nothing for 0.02 s"):
        await _stall(StallGuard(worker_s=60, reader_s=0.02), StallGuard.waits_for_reader)


async def test_a_stream_that_goes_on_is_left_alone() -> None:
    """Many short waits, together longer than the bound, are no stall."""
    loop = asyncio.get_running_loop()
    with StallGuard(worker_s=0.05, reader_s=0.05) as guard:
        end = loop.time() + 0.2
        while loop.time() < end:
            guard.waits_for_worker()
            await asyncio.sleep(0.001)
            guard.waits_for_reader()
            await asyncio.sleep(0.001)


async def test_a_cancellation_from_outside_stays_one() -> None:
    """A client's cancel is never taken for a stall."""

    async def relay() -> None:
        with StallGuard(worker_s=60, reader_s=60) as guard:
            guard.waits_for_worker()
            await asyncio.Event().wait()

    task = asyncio.create_task(relay())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_inside_pass_through() -> None:
    """The guard adds nothing to what goes wrong inside it."""
    with pytest.raises(ZeroDivisionError), StallGuard(worker_s=1, reader_s=1):
        raise ZeroDivisionError
