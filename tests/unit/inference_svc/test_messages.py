"""Who merges a stream's tokens into messages, and when a message goes."""

import asyncio
from collections.abc import AsyncIterator

from inference_svc.coalesce import Coalescer
from inference_svc.engine import FinishReason, TokenDelta
from inference_svc.messages import Paced, messages
from tests.unit.inference_svc.engines.test_pulled_stream import joined


async def no_deltas() -> AsyncIterator[TokenDelta]:
    return
    yield


async def test_a_stream_that_merges_is_read_when_due() -> None:
    """Any other one is read ahead."""
    assert isinstance(messages((await joined()).stream, 64, lambda: 0.0), Paced)
    assert isinstance(messages(no_deltas(), 64, lambda: 0.0), Coalescer)


async def test_the_first_goes_at_once_and_the_rest_at_a_distance() -> None:
    """What comes before the next message is due goes with it."""
    subject = await joined()
    loop = asyncio.get_running_loop()
    async with Paced(subject.stream, 64, lambda: 0.05) as stream:
        subject.sequence.give(10)
        first = await stream.take(1)
        began = loop.time()
        subject.sequence.give(11)
        taking = asyncio.create_task(stream.take(1))
        await asyncio.sleep(0.01)
        subject.sequence.give(12)
        second = await taking
        assert loop.time() - began >= 0.045
    assert first is not None
    assert second is not None
    assert (first.token_ids, second.token_ids) == ((10,), (11, 12))


async def test_the_end_does_not_wait() -> None:
    """A finished answer is told at once, however far apart messages are."""
    subject = await joined()
    async with Paced(subject.stream, 64, lambda: 3600.0) as stream:
        subject.sequence.give(10)
        await stream.take(1)
        taking = asyncio.create_task(stream.take(1))
        await asyncio.sleep(0)
        subject.sequence.give(11, ended=FinishReason.STOP)
        last = await asyncio.wait_for(taking, 5)
        assert last is not None
        assert last.finish_reason is FinishReason.STOP
        assert stream.complete
