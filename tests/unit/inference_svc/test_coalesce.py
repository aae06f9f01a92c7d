"""The first token at once, then whatever came while the last write was under way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from inference_svc.coalesce import Coalescer
from inference_svc.engine import FinishReason, TokenDelta, TokenLogprob
from sidecache.errors import EngineFailed, Unavailable


class Feed:
    """An engine stream that gives what it is told to, when it is told to."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[TokenDelta | Exception | None] = asyncio.Queue()

    def put(self, *items: TokenDelta | Exception | None) -> None:
        for item in items:
            self._queue.put_nowait(item)

    async def deltas(self) -> AsyncIterator[TokenDelta]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


def token(offset: int, choice: int = 0, reason: FinishReason | None = None) -> TokenDelta:
    logprobs = (TokenLogprob(-float(offset)),)
    return TokenDelta(choice, offset, (100 + offset,), f" {offset}", logprobs, reason)


async def test_the_first_goes_alone_and_the_rest_together() -> None:
    """One token that is there is not kept for more; those that came meanwhile are merged."""
    feed = Feed()
    async with Coalescer(feed.deltas(), 64) as stream:
        feed.put(token(0))
        assert await stream.take(1) == token(0)
        feed.put(token(1), token(2), token(3))
        await asyncio.sleep(0)
        merged = await stream.take(1)
    assert merged is not None
    assert (merged.offset, merged.token_ids, merged.text) == (1, (101, 102, 103), " 1 2 3")
    assert [each.logprob for each in merged.logprobs] == [-1, -2, -3]


async def test_what_was_cached_is_kept_wherever_it_is_said() -> None:
    """A server may tell it with the last token only; the merged message says it."""
    feed = Feed()
    async with Coalescer(feed.deltas(), 64) as stream:
        feed.put(token(0))
        await stream.take(1)
        last = replace(token(2, reason=FinishReason.LENGTH), cached_prompt_tokens=32)
        feed.put(token(1), last)
        await asyncio.sleep(0)
        merged = await stream.take(1)
    assert merged is not None
    assert merged.token_ids == (101, 102)
    assert merged.cached_prompt_tokens == 32


async def test_a_message_has_a_limit() -> None:
    """No more tokens than allowed go into one message, and none is lost."""
    feed = Feed()
    feed.put(*map(token, range(10)), None)
    async with Coalescer(feed.deltas(), 4) as stream:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sizes = []
        while not stream.complete:
            delta = await stream.take(1)
            if delta is not None:
                sizes.append(len(delta.token_ids))
    assert sum(sizes) == 10
    assert max(sizes) <= 4


async def test_choices_that_alternate_are_put_together_each() -> None:
    """Several answers at once come in turns; a message a token would cost the most of all."""
    feed = Feed()
    feed.put(*[token(offset, choice=choice) for offset in range(4) for choice in range(3)])
    feed.put(token(4, choice=1, reason=FinishReason.STOP), None)
    async with Coalescer(feed.deltas(), 3) as stream:
        await asyncio.sleep(0)
        taken = [await stream.take(1) for _ in range(6)]
    assert [(each.choice, each.offset, len(each.token_ids)) for each in taken if each] == [
        (0, 0, 3), (1, 0, 3), (2, 0, 3), (0, 3, 1), (1, 3, 2), (2, 3, 1),
    ]  # fmt: skip
    assert [each.finish_reason for each in taken if each][4] is FinishReason.STOP


async def test_choices_are_not_mixed_and_an_end_is_the_end() -> None:
    """A message holds one choice, and nothing after that choice's finish reason."""
    feed = Feed()
    stop = FinishReason.STOP
    feed.put(token(0), token(1, reason=stop), token(0, choice=1), token(1, choice=1, reason=stop))
    async with Coalescer(feed.deltas(), 64) as stream:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        taken = [await stream.take(1) for _ in range(2)]
    assert [(each.choice, len(each.token_ids)) for each in taken if each] == [(0, 2), (1, 2)]
    assert all(each and each.finish_reason is stop for each in taken)


async def test_silence_is_reported_and_loses_nothing() -> None:
    """A time-out is None, and the stream goes on after it."""
    feed = Feed()
    async with Coalescer(feed.deltas(), 64) as stream:
        assert await stream.take(0.001) is None
        assert not stream.complete
        feed.put(token(0))
        assert await stream.take(1) == token(0)


async def test_what_came_before_a_failure_is_delivered_first() -> None:
    """An engine's death comes after its last tokens, as itself."""
    feed = Feed()
    feed.put(token(0), EngineFailed("gone"))
    async with Coalescer(feed.deltas(), 64) as stream:
        assert await stream.take(1) == token(0)
        with pytest.raises(EngineFailed, match="gone"):
            await stream.take(1)


async def test_a_stream_can_be_ended_from_outside() -> None:
    """A drain ends a waiting reader with its own error."""
    async with Coalescer(Feed().deltas(), 64) as stream:
        waiting = asyncio.create_task(stream.take(60))
        await asyncio.sleep(0)
        stream.fail(Unavailable("draining"))
        with pytest.raises(Unavailable, match="draining"):
            await waiting


async def test_leaving_stops_the_reading() -> None:
    """No task is left behind when the block is left."""
    before = asyncio.all_tasks()
    async with Coalescer(Feed().deltas(), 64):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_messages_keep_their_distance() -> None:
    """The first goes at once; what comes too soon after it waits and goes together."""
    feed = Feed()
    loop = asyncio.get_running_loop()
    async with Coalescer(feed.deltas(), 64, lambda: 0.05) as stream:
        feed.put(token(0))
        assert await stream.take(1) == token(0)
        first_at = loop.time()
        feed.put(token(1))
        taking = asyncio.create_task(stream.take(1))
        await asyncio.sleep(0.01)
        feed.put(token(2), token(3))
        merged = await taking
    assert merged is not None
    assert merged.token_ids == (101, 102, 103)
    assert loop.time() - first_at >= 0.05


@pytest.mark.parametrize("last", [token(3), token(1, reason=FinishReason.STOP), None])
async def test_a_full_or_last_message_does_not_wait(last: TokenDelta | None) -> None:
    """Distance is for messages that more tokens would make better."""
    feed = Feed()
    async with Coalescer(feed.deltas(), 3, lambda: 3600.0) as stream:
        feed.put(token(0))
        assert await stream.take(1) == token(0)
        if last == token(3):
            feed.put(token(1), token(2))
        elif last is None:
            feed.put(token(1))
        feed.put(last)
        async with asyncio.timeout(5):
            merged = await stream.take(1)
    assert merged is not None
    assert len(merged.token_ids) == (3 if last == token(3) else 1)


async def test_a_stream_that_comes_slowly_is_not_held_up() -> None:
    """A token that comes after the distance goes at once."""
    feed = Feed()
    loop = asyncio.get_running_loop()
    async with Coalescer(feed.deltas(), 64, lambda: 0.01) as stream:
        feed.put(token(0))
        await stream.take(1)
        await asyncio.sleep(0.02)
        feed.put(token(1))
        before = loop.time()
        assert await stream.take(1) == token(1)
        assert loop.time() - before < 0.01
