"""Looking at silent workers, while they leave."""

import asyncio
import time

from router.quiet_watch import QuietWatch
from router.settings import QuietSettings
from router.worker import State
from tests.unit.router.fleet import make_worker


async def test_a_worker_that_leaves_as_it_is_asked_ends_no_watch() -> None:
    """Its channel is closed by then; that says nothing, and the others are looked at on."""
    worker = make_worker("w1")
    worker.state, worker.words_due = State.READY, 1
    await worker.channel.close(grace=None)
    given_up = asyncio.Event()
    settings = QuietSettings(quiet_s=0.02, least_answer_s=0.02, answer_s=0.05)
    watch = QuietWatch(lambda: [worker], settings, time.monotonic, lambda _: given_up.set())
    watching = asyncio.create_task(watch.run())
    told = asyncio.create_task(given_up.wait())
    try:
        async with asyncio.timeout(10):
            await asyncio.wait((watching, told), return_when=asyncio.FIRST_COMPLETED)
        assert not watching.done()
    finally:
        watching.cancel()
        told.cancel()
        await asyncio.gather(watching, told, return_exceptions=True)
