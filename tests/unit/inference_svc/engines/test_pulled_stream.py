"""A stream that is read when a message is due: merged meanwhile, whole, and its slot given back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, lists, sampled_from, tuples

from inference_svc.choice import Choice
from inference_svc.engine import (
    Continuation,
    FinishReason,
    GenerationRequest,
    MergingStream,
    Sampling,
    TokenDelta,
    TokenLogprob,
)
from inference_svc.engines.pulled_stream import PulledStream
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
    seeds: list[int] = field(default_factory=list)
    early: Step | None = None  # given before the sequence is handed over
    broken: Exception | None = None  # of every read

    async def add(
        self, request: Any, prompt: list[int], done: int, seed: int, tell: Callable[[bool], None]
    ) -> Sequence:
        await self.gate.wait()
        self.prompts.append(prompt)
        self.seeds.append(seed)
        if self.refusal is not None:
            raise self.refusal
        self.sequences.append(Sequence(tell))
        if self.early is not None:
            self.sequences[-1].give(*self.early.token_ids, ended=self.early.ended)
        return self.sequences[-1]

    def read(self, output: Step, wanted: int | None) -> Step:
        if self.broken is not None:
            raise self.broken
        return output

    def failed(self, error: Exception) -> SidecacheError:
        return EngineFailed(str(error))


@dataclass
class Subject:
    batch: Batch
    slots: Slots
    stream: PulledStream

    @property
    def sequence(self) -> Sequence:
        return self.batch.sequences[0]


async def joined(
    *,
    is_open: bool = True,
    slots: Slots | None = None,
    early: Step | None = None,
    max_tokens: int = 9,
    **more: Any,
) -> Subject:
    """A stream whose sequences have joined, unless the gate stays shut."""
    batch, slots = Batch(early=early), slots or Slots(max(1, more.get("n", 1)), 1)
    request = GenerationRequest("r", (1, 2, 3), max_tokens, **more)
    choices = [Choice(index, Words(), request.stop) for index in range(request.n)]
    stream = PulledStream(request, choices, frozenset({7}), batch, slots)
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


async def test_a_stop_string_ends_its_sequence_at_once() -> None:
    """Across outputs, and while nobody reads: it leaves the batch, and whoever rests is woken."""
    subject = await joined(stop=("1 12",))
    resting = asyncio.create_task(subject.stream.rest(asyncio.get_running_loop().time() + NEVER))
    await asyncio.sleep(0)
    subject.sequence.give(10)
    subject.sequence.give(11)
    assert subject.slots.running == 1
    subject.sequence.give(12)
    subject.sequence.give(13)  # on its way when the sequence was left
    await asyncio.wait_for(resting, 5)
    await asyncio.sleep(0)
    assert subject.sequence.aborted
    assert subject.slots.running == 0
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert (delta.token_ids, delta.text) == ((10, 11, 12), " 10 1")
    assert delta.finish_reason is FinishReason.STOP
    assert subject.stream.over


async def test_what_a_stop_string_holds_back_is_given_at_the_end() -> None:
    """Text that only begins a stop string is part of the answer, and messages stay bounded."""
    subject = await joined(stop=("12 never",))
    subject.sequence.give(10, 11, 12, ended=FinishReason.LENGTH, cached=2)
    taken = [await subject.stream.take(2, 1) for _ in range(2)]
    assert [each and each.token_ids for each in taken] == [(10, 11), (12,)]
    assert [each and each.text for each in taken] == [" 10 1", "1 12"]
    assert [each and each.finish_reason for each in taken] == [None, FinishReason.LENGTH]
    assert [each and each.cached_prompt_tokens for each in taken] == [2, None]
    assert not subject.sequence.aborted


async def test_a_stop_string_that_came_with_the_sequence_is_seen() -> None:
    """An engine that gives tokens before it has handed the sequence over is looked at too."""
    subject = await joined(stop=("11",), early=Step([10, 11, 12], [], None, None))
    for _ in range(3):
        await asyncio.sleep(0)
    assert subject.sequence.aborted
    assert subject.slots.running == 0
    delta = await subject.stream.take(64, 1)
    assert delta is not None
    assert (delta.token_ids, delta.text) == ((10, 11), " 10 ")
    assert delta.finish_reason is FinishReason.STOP


async def test_choices_are_taken_in_turns() -> None:
    """Each is a sequence of its own with the next seed, and one answer waits for no other."""
    subject = await joined(n=3, sampling=Sampling(temperature=1, seed=40))
    assert subject.batch.seeds == [40, 41, 42]
    assert subject.batch.prompts == [[1, 2, 3]] * 3
    first, second, third = subject.batch.sequences
    for each in (first, second, third):
        each.give(10, cached=2)
        each.give(11, cached=2)
    third.give(12, ended=FinishReason.LENGTH)
    taken = [await subject.stream.take(64, 1) for _ in range(3)]
    assert [each and each.choice for each in taken] == [0, 1, 2]
    assert [each and each.token_ids for each in taken] == [(10, 11), (10, 11), (10, 11, 12)]
    assert [each and each.cached_prompt_tokens for each in taken] == [2, None, None]
    second.give(12)
    second.give(13, ended=FinishReason.STOP)
    first.give(12)
    taken = [await subject.stream.take(64, 1) for _ in range(2)]
    assert [each and each.offset for each in taken] == [2, 2]
    assert not subject.stream.over
    assert subject.slots.running == 3, "the slot is that of all choices"
    first.give(13, ended=FinishReason.STOP)
    assert subject.slots.running == 0
    last = await subject.stream.take(64, 1)
    assert last is not None
    assert (last.choice, last.token_ids) == (0, (13,))
    assert subject.stream.over


async def test_a_stop_string_ends_one_choice_alone() -> None:
    """The others stay in the batch, and the slot with them."""
    subject = await joined(n=2, stop=("11",))
    stopped, other = subject.batch.sequences
    for each in (10, 11):
        stopped.give(each)
    other.give(10)
    await asyncio.sleep(0)
    assert stopped.aborted
    assert not other.aborted
    assert subject.slots.running == 2
    other.give(12, ended=FinishReason.STOP)
    assert subject.slots.running == 0
    taken = [await subject.stream.take(64, 1) for _ in range(2)]
    assert [each and each.text for each in taken] == [" 10 ", " 10 12"]
    assert subject.stream.over


async def test_a_failure_ends_all_choices_after_what_they_gave() -> None:
    """None of them stays in the batch."""
    subject = await joined(n=2)
    for each in subject.batch.sequences:
        each.give(10)
    subject.stream.end(EngineFailed("gone"))
    taken = [await subject.stream.take(64, 1) for _ in range(2)]
    assert [each and each.token_ids for each in taken] == [(10,), (10,)]
    with pytest.raises(EngineFailed, match="gone"):
        await subject.stream.take(64, 1)
    await subject.stream.aclose()
    assert [each.aborted for each in subject.batch.sequences] == [True, True]
    assert subject.slots.running == 0


async def test_an_output_that_cannot_be_read_hurts_no_one_else() -> None:
    """The engine hands outputs over in its own loop, which an error would end for everybody."""
    subject = await joined(stop=("11",))
    subject.batch.broken = EngineFailed("given up")
    subject.sequence.give(10)  # raises nothing
    with pytest.raises(EngineFailed, match="given up"):
        await subject.stream.take(64, 1)
    await subject.stream.aclose()
    assert subject.sequence.aborted
    assert subject.slots.running == 0


async def test_leaving_between_the_grant_and_the_joining() -> None:
    """A slot may be granted in the moment in which its reader leaves: nothing joins then."""
    first = await joined()
    second = await joined(slots=first.slots)
    first.sequence.give(10, ended=FinishReason.LENGTH)  # grants the second its slot
    await second.stream.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert second.batch.sequences == []
    assert (first.slots.running, first.slots.waiting) == (0, 0)


@settings(max_examples=50, deadline=None)  # the cores may be busy
@given(
    answers=lists(lists(integers(10, 13), min_size=1, max_size=12), min_size=1, max_size=3),
    cuts=lists(tuples(integers(0, 2), integers(1, 4), integers(1, 5), booleans()), max_size=20),
    stop=sampled_from([(), ("1 12",), ("13", "2 1"), (" 10 10 10 10", "never")]),
)
async def test_however_it_is_cut_the_answer_is_the_same(
    answers: list[list[int]], cuts: list[tuple[int, int, int, bool]], stop: tuple[str, ...]
) -> None:
    """Outputs of any size, taken at any time: ids, text and reason as if read one by one."""
    subject = await joined(n=len(answers), stop=stop, max_tokens=12, logprobs=0)
    left = [list(answer) for answer in answers]
    heard: dict[int, list[TokenDelta]] = {index: [] for index in range(len(answers))}

    def give(index: int, count: int) -> None:
        ids, left[index][:] = left[index][:count], left[index][count:]
        if ids and not subject.batch.sequences[index].ended:
            ended = None if left[index] else FinishReason.LENGTH
            subject.batch.sequences[index].give(*ids, ended=ended)

    async def take(max_tokens: int) -> None:
        delta = await subject.stream.take(max_tokens, 0)
        if delta is not None:
            assert len(delta.token_ids) <= max_tokens
            heard[delta.choice].append(delta)

    for index, count, max_tokens, taking in cuts:
        give(index % len(answers), count)
        if taking:
            await take(max_tokens)
    for index in range(len(answers)):
        give(index, 12)
    async with asyncio.timeout(60):
        while not subject.stream.over:
            await take(3)
    for index, answer in enumerate(answers):
        _check_as_if_read_one_by_one(answer, stop, heard[index])


def _check_as_if_read_one_by_one(
    answer: list[int], stop: tuple[str, ...], heard: list[TokenDelta]
) -> None:
    choice, read = Choice(0, Words(), stop), list[TokenDelta]()
    for place, token_id in enumerate(answer, 1):
        if choice.finished is None:
            ended = FinishReason.LENGTH if place == len(answer) else None
            read.append(choice.push((token_id,), (TokenLogprob(-token_id),), ended))
    assert [each.finish_reason for each in heard[:-1]] == [None] * (len(heard) - 1)
    assert heard[-1].finish_reason is choice.finished
    for name in ("token_ids", "logprobs"):
        values = [[x for each in deltas for x in getattr(each, name)] for deltas in (heard, read)]
        assert values[0] == values[1]
    assert "".join(each.text for each in heard) == "".join(each.text for each in read)
    offset = 0
    for each in heard:
        assert each.offset == offset
        offset += len(each.token_ids)
