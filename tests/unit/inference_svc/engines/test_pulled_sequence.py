"""A stream that is read when a message is due: merged meanwhile, whole, and its slot given back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from inference_svc.choice import Choice
from inference_svc.engine import (
    Continuation,
    FinishReason,
    GenerationRequest,
    MergingStream,
    TokenLogprob,
)
from inference_svc.engines.pulled_sequence import PulledSequence
from inference_svc.engines.sequence_stream import Step
from inference_svc.slots import Slots
from sidecache.errors import EngineFailed, SidecacheError

NEVER = 3600.0


class Words:
    """Each id is its own word."""

    def push(self, token_ids: Any) -> str:
        return "".join([f" {each}" for each in token_ids])

    def flush(self) -> str:
        return ""


@dataclass
class Sequence:
    """One sequence's outputs, merged until they are taken, as vLLM merges them."""

    tell: Callable[[bool], None]
    waiting: Step | None = None
    aborted: bool = False
    ended: bool = False

    def give(self, *ids: int, ended: FinishReason | None = None, cached: int | None = None) -> None:
        new = Step(list(ids), [TokenLogprob(-float(each)) for each in ids], ended, cached)
        if self.waiting is not None:
            old = self.waiting
            new = Step(
                old.token_ids + new.token_ids, old.logprobs + new.logprobs, ended, old.cached_tokens
            )
        self.waiting, self.ended = new, ended is not None
        self.tell(self.ended)

    def take(self) -> Step | None:
        taken, self.waiting = self.waiting, None
        return taken

    async def abort(self) -> None:
        self.aborted = True


@dataclass
class Batch:
    """Who joins, and when."""

    sequences: list[Sequence] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: Exception | None = None
    prompts: list[list[int]] = field(default_factory=list)

    async def add(
        self, request: Any, prompt: list[int], done: int, seed: int, tell: Callable[[bool], None]
    ) -> Sequence:
        await self.gate.wait()
        self.prompts.append(prompt)
        if self.refusal is not None:
            raise self.refusal
        self.sequences.append(Sequence(tell))
        return self.sequences[-1]

    def read(self, output: Step, wanted: int | None) -> Step:
        return output

    def failed(self, error: Exception) -> SidecacheError:
        return EngineFailed(str(error))


@dataclass
class Subject:
    batch: Batch
    slots: Slots
    stream: PulledSequence

    @property
    def sequence(self) -> Sequence:
        return self.batch.sequences[0]


async def joined(*, is_open: bool = True, slots: Slots | None = None, **more: Any) -> Subject:
    """A stream whose sequence has joined, unless the gate stays shut."""
    batch, slots = Batch(), slots or Slots(1, 1)
    request = GenerationRequest("r", (1, 2, 3), 9, **more)
    stream = PulledSequence(request, Choice(0, Words(), ()), frozenset({7}), batch, slots)
    if is_open:
        batch.gate.set()
        for _ in range(3):
            await asyncio.sleep(0)
    return Subject(batch, slots, stream)


async def test_it_is_a_merging_stream() -> None:
    """So a worker reads it when a message is due."""
    assert isinstance((await joined()).stream, MergingStream)


async def test_what_nobody_took_comes_together() -> None:
    """One take gives everything since the last one, with offset, text and logprobs."""
    subject = await joined()
    subject.sequence.give(10, cached=2)
    first = await subject.stream.take(64, 1)
    for each in (11, 12, 13):
        subject.sequence.give(each, cached=2)
    rest = await subject.stream.take(64, 1)
    assert first is not None
    assert rest is not None
    assert (first.offset, first.token_ids, first.cached_prompt_tokens) == (0, (10,), 2)
    assert (rest.offset, rest.token_ids, rest.text) == (1, (11, 12, 13), " 11 12 13")
    assert [each.logprob for each in rest.logprobs] == [-11, -12, -13]
    assert rest.cached_prompt_tokens is None


async def test_a_token_wakes_whoever_waits_for_one() -> None:
    """The first token is handed over at once."""
    subject = await joined()
    taking = asyncio.create_task(subject.stream.take(64, NEVER))
    await asyncio.sleep(0)
    subject.sequence.give(10)
    delta = await asyncio.wait_for(taking, 5)
    assert delta is not None
    assert delta.token_ids == (10,)


async def test_rest_is_ended_by_the_last_token_and_by_no_other() -> None:
    """Between two messages a token wakes nobody; the end does."""
    subject = await joined()
    resting = asyncio.create_task(subject.stream.rest(asyncio.get_running_loop().time() + NEVER))
    await asyncio.sleep(0)
    subject.sequence.give(10)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not resting.done()
    subject.sequence.give(11, ended=FinishReason.LENGTH)
    await asyncio.wait_for(resting, 5)


async def test_rest_ends_when_its_time_has_come() -> None:
    """A message is written when it is due, whatever the engine does."""
    subject = await joined()
    await asyncio.wait_for(subject.stream.rest(asyncio.get_running_loop().time() + 0.01), 5)


async def test_more_than_a_message_holds_stays_for_the_next() -> None:
    """Cut, the deltas still are the whole stream, and only the last one has the reason."""
    subject = await joined()
    subject.sequence.give(*range(10, 17), ended=FinishReason.LENGTH)
    taken = [await subject.stream.take(3, 1) for _ in range(3)]
    assert [each and each.token_ids for each in taken] == [(10, 11, 12), (13, 14, 15), (16,)]
    assert [each and each.offset for each in taken] == [0, 3, 6]
    assert [each and each.finish_reason for each in taken] == [None, None, FinishReason.LENGTH]
    assert subject.stream.over
    assert await subject.stream.take(3, 1) is None


async def test_silence_is_none_and_a_cancelled_take_loses_nothing() -> None:
    """A time-out and a cancel leave the stream as it was."""
    subject = await joined()
    assert await subject.stream.take(64, 0.001) is None
    taking = asyncio.create_task(subject.stream.take(64, NEVER))
    await asyncio.sleep(0)
    taking.cancel()
    subject.sequence.give(10)
    await asyncio.wait((taking,))
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert delta.token_ids == (10,)


async def test_the_slot_is_free_when_the_engine_is_done() -> None:
    """A slow reader of the last tokens keeps nobody waiting."""
    subject = await joined()
    subject.sequence.give(10, ended=FinishReason.STOP)
    assert subject.slots.running == 0
    await subject.stream.aclose()
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert delta.finish_reason is FinishReason.STOP


async def test_leaving_aborts_and_gives_the_slot_back() -> None:
    """In the middle, and also while the sequence is only being added."""
    subject = await joined()
    subject.sequence.give(10)
    await subject.stream.aclose()
    assert subject.sequence.aborted
    assert subject.slots.running == 0
    early = await joined(is_open=False)
    await asyncio.sleep(0)
    closing = asyncio.create_task(early.stream.aclose())
    await asyncio.sleep(0)
    assert early.slots.running == 1, "the engine has not been told yet"
    early.batch.gate.set()
    await asyncio.wait_for(closing, 5)
    assert early.sequence.aborted
    assert early.slots.running == 0


async def test_leaving_before_a_slot_was_granted() -> None:
    """Whoever waits for a slot leaves the queue, and joins nothing later."""
    first = await joined()
    second = await joined(slots=first.slots)
    await second.stream.aclose()
    await first.stream.aclose()
    await asyncio.sleep(0)
    assert second.batch.sequences == []
    assert (first.slots.running, first.slots.waiting) == (0, 0)


async def test_what_came_before_a_failure_is_given_first() -> None:
    """An engine's death comes after its last tokens, also to whoever rests."""
    subject = await joined()
    subject.sequence.give(10)
    resting = asyncio.create_task(subject.stream.rest(asyncio.get_running_loop().time() + NEVER))
    await asyncio.sleep(0)
    subject.stream.end(EngineFailed("gone"))
    await asyncio.wait_for(resting, 5)
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert delta.token_ids == (10,)
    with pytest.raises(EngineFailed, match="gone"):
        await subject.stream.take(64, 1)
    assert not subject.stream.over


async def test_a_refused_sequence_is_an_error_and_no_slot() -> None:
    """What the engine says when it is asked reaches whoever waits."""
    subject = await joined(is_open=False)
    subject.batch.refusal = ValueError("too long")
    taking = asyncio.create_task(subject.stream.take(64, NEVER))
    await asyncio.sleep(0)
    subject.batch.gate.set()
    with pytest.raises(EngineFailed, match="too long"):
        await asyncio.wait_for(taking, 5)
    await subject.stream.aclose()
    assert subject.slots.running == 0


async def test_a_continuation_goes_on_or_is_over() -> None:
    """Delivered ids are part of the prompt; a complete answer joins nothing."""
    subject = await joined(continuation=Continuation((4, 5), " 4 5"))
    assert subject.batch.prompts == [[1, 2, 3, 4, 5]]
    subject.sequence.give(6)
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert delta.offset == 2
    done = await joined(continuation=Continuation((4, 7), " 4 7"))
    last = await done.stream.take(64, 1)
    assert last is not None
    assert last.finish_reason is FinishReason.STOP
    assert done.stream.over
    assert done.batch.prompts == []
    assert done.slots.running == 0


async def test_it_is_an_iterator_too() -> None:
    """As every engine's stream."""
    subject = await joined()
    subject.sequence.give(10)
    subject.sequence.give(11, ended=FinishReason.LENGTH)
    assert [each.token_ids async for each in subject.stream] == [(10, 11)]
