"""The one suite that every Engine passes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from inference_svc.engine import Continuation, FinishReason, GenerationRequest, Sampling
from sidecache.errors import InvalidRequest, NotFound, Overloaded
from tests.contract.engines import (
    MAX_SEQUENCES,
    MAX_WAITING,
    TELLING_KV,
    Subject,
    openvino_subject,
    scripted_subject,
    subject,
    tensorrt_llm_subject,
)

__all__ = ["openvino_subject", "scripted_subject", "subject", "tensorrt_llm_subject"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "Write a short poem about the sea."
# Over the whole vocabulary the last bit of a logit decides now and then, and it
# depends on who shares a prefill; over the likely tokens it practically never does.
SAMPLED = Sampling(temperature=0.9, top_k=40, top_p=0.95)


@asynccontextmanager
async def _entered(subject: Subject, request: GenerationRequest, times: int) -> AsyncIterator[None]:
    """So many streams of one request, all at their first token or waiting for a slot."""
    async with AsyncExitStack() as stack:
        for _ in range(times):
            deltas = await stack.enter_async_context(subject.engine.submit(request))
            if not subject.engine.load_figures().waiting_sequences:
                await anext(deltas)
        yield


async def until_idle(subject: Subject, timeout_s: float = 5.0) -> None:
    """Wait until the engine holds no sequence."""
    async with asyncio.timeout(timeout_s):
        while subject.engine.load_figures().running_sequences:
            await asyncio.sleep(0.001)


async def test_a_stream_is_whole(subject: Subject) -> None:
    """Tokens come in order from offset 0 up to max_tokens, with one reason at the end."""
    answer = await subject.ask(QUESTION, 24)
    assert answer.deltas[0].offset == 0
    assert len(answer.ids()) == 24
    assert answer.reason() is FinishReason.LENGTH
    assert all(0 <= each < subject.engine.facts.vocabulary_size for each in answer.ids())


async def test_deltas_put_together_are_the_decoded_ids(subject: Subject) -> None:
    """No character is lost, doubled or broken at a token's border."""
    for question in (QUESTION, "Translate good morning into Japanese, Arabic and Hindi. 😀"):
        answer = await subject.ask(question, 40)
        assert answer.text() == subject.decode(answer.ids())


async def test_greedy_repeats(subject: Subject) -> None:
    """The same greedy request gives the same tokens again, and another question others."""
    first, again = [await subject.ask(QUESTION) for _ in range(2)]
    other = await subject.ask("What is two plus two?")
    assert first.ids() == again.ids()
    assert first.ids() != other.ids()


async def test_a_seed_repeats(subject: Subject) -> None:
    """Sampling repeats with its seed, also beside others, and differs with another seed."""
    sampling = [replace(SAMPLED, seed=seed) for seed in (5, 5, 6)]
    alone = await subject.ask(QUESTION, sampling=sampling[0])
    first, again, other = await asyncio.gather(
        *(subject.ask(QUESTION, sampling=each) for each in sampling)
    )
    assert alone.ids() == first.ids() == again.ids()
    assert other.ids() != first.ids()


async def test_greedy_decoding_ignores_a_seed(subject: Subject) -> None:
    """The key leaves the seed out of greedy requests, so no engine may look at it."""
    sampling = [Sampling(seed=seed) for seed in (None, 5, 6)]
    answers = [await subject.ask(QUESTION, sampling=each) for each in sampling]
    assert answers[0].ids() == answers[1].ids() == answers[2].ids()


async def test_choices_are_seeds_in_a_row(subject: Subject) -> None:
    """Choice i of a seeded request is what seed + i gives alone."""
    answer = await subject.ask(QUESTION, n=3, sampling=replace(SAMPLED, seed=40))
    for choice in range(3):
        alone = await subject.ask(QUESTION, sampling=replace(SAMPLED, seed=40 + choice))
        assert answer.ids(choice) == alone.ids()
        assert answer.reason(choice) is alone.reason()


@pytest.mark.parametrize("begin", [0, 9, 14])
@pytest.mark.parametrize("length", [1, 7, 20])
async def test_a_stop_string_ends_the_text(subject: Subject, begin: int, length: int) -> None:
    """The text ends right before the first stop string, wherever tokens cut it."""
    whole = await subject.ask(QUESTION, 30)
    stop = whole.text()[begin : begin + length]
    answer = await subject.ask(QUESTION, 30, stop=("never said", stop))
    assert answer.text() == whole.text()[: whole.text().index(stop)]
    assert answer.reason() is FinishReason.STOP
    assert answer.ids() == whole.ids()[: len(answer.ids())]
    assert stop in subject.decode(answer.ids())
    assert stop not in subject.decode(answer.ids()[:-1])
    await until_idle(subject)


async def test_text_that_only_begins_a_stop_string_comes_through(subject: Subject) -> None:
    """What was held back as a possible stop string is delivered when it was none."""
    whole = await subject.ask(QUESTION, 30)
    stops = tuple(f"{word}\0" for word in re.findall(r"\S+", whole.text())[:12])
    answer = await subject.ask(QUESTION, 30, stop=stops)
    assert answer.text() == whole.text()
    assert answer.reason() is FinishReason.LENGTH


@pytest.mark.parametrize("delivered", [0, 1, 7, 23])
async def test_a_continuation_is_the_rest_of_the_greedy_run(
    subject: Subject, delivered: int
) -> None:
    """Prompt and delivered tokens go on exactly as if nothing had happened."""
    question = "Say good morning in Japanese."
    whole = await subject.ask(question, 24)
    ids = whole.ids()[:delivered]
    # As little text as a stream can have shown by then: the last token's may lag.
    text = subject.decode(ids[:-1]).rstrip("\ufffd")
    rest = await subject.ask(question, 24, continuation=Continuation(tuple(ids), text))
    assert rest.deltas[0].offset == delivered
    assert ids + rest.ids() == whole.ids()
    assert text + rest.text() == whole.text()
    assert rest.reason() is whole.reason()


async def test_a_continuation_remembers_half_a_stop_string(subject: Subject) -> None:
    """A stop string that begins before the takeover and ends after it still counts."""
    whole = await subject.ask(QUESTION, 24)
    text = whole.text()
    border = len(subject.decode(whole.ids()[:10]))
    stop = text[border - 3 : border + 3]
    assert text.index(stop) == border - 3
    continuation = Continuation(tuple(whole.ids()[:10]), text[: border - 3])
    rest = await subject.ask(QUESTION, 24, stop=(stop,), continuation=continuation)
    assert rest.text() == ""
    assert rest.reason() is FinishReason.STOP


async def test_a_complete_answer_continues_with_its_end(subject: Subject) -> None:
    """When every token was delivered, a continuation only says so."""
    whole = await subject.ask(QUESTION, 8)
    continuation = Continuation(tuple(whole.ids()), "")
    rest = await subject.ask(QUESTION, 8, continuation=continuation)
    assert rest.ids() == []
    assert rest.text() == whole.text()
    assert rest.reason() is FinishReason.LENGTH
    await until_idle(subject)


async def test_a_false_continuation_is_refused(subject: Subject) -> None:
    """Text that is not the ids' own names its field."""
    with pytest.raises(InvalidRequest, match="delivered_text"):
        await subject.ask(QUESTION, continuation=Continuation((5, 6), "something else"))


async def test_leaving_frees_the_slot(subject: Subject) -> None:
    """A reader that leaves in the middle frees its slot within a step and 100 ms."""
    request = await subject.request(QUESTION, 2000)
    for _ in range(5):
        async with subject.engine.submit(request) as deltas:
            await anext(deltas)
            assert subject.engine.load_figures().running_sequences == 1
        await until_idle(subject, timeout_s=0.3)


async def test_leaving_before_the_first_token_frees_the_slot(subject: Subject) -> None:
    """So does one that leaves while it waits for its first token."""
    request = await subject.request(QUESTION * 60, 2000)
    async with subject.engine.submit(request) as deltas:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(deltas)
    await until_idle(subject)


async def test_a_cancelled_read_loses_nothing(subject: Subject) -> None:
    """Reads that are cancelled again and again still see every token."""
    whole = await subject.ask(QUESTION, 16)
    ids: list[int] = []
    async with subject.engine.submit(await subject.request(QUESTION, 16)) as deltas:
        while True:
            try:
                async with asyncio.timeout(0.0004):
                    ids += (await anext(deltas)).token_ids
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
    assert ids == whole.ids()


async def test_more_than_fits_waits_and_then_is_refused(subject: Subject) -> None:
    """Slots, then a bounded queue, then Overloaded with a time to come back."""
    request = await subject.request(QUESTION, 2000)
    tokens = len(request.prompt_token_ids)
    async with asyncio.timeout(30):
        async with _entered(subject, request, MAX_SEQUENCES + MAX_WAITING):
            load = subject.engine.load_figures()
            assert load.running_sequences == load.max_sequences == MAX_SEQUENCES
            assert load.waiting_sequences == MAX_WAITING
            assert load.waiting_prompt_tokens == MAX_WAITING * tokens
            with pytest.raises(Overloaded) as refused:
                async with subject.engine.submit(request):
                    pass
            assert refused.value.retry_after_s > 0
        await until_idle(subject)
    assert subject.engine.load_figures().waiting_sequences == 0
    assert len((await subject.ask(QUESTION, 4)).ids()) == 4


async def test_a_waiting_request_gets_the_next_free_slot(subject: Subject) -> None:
    """Who waited runs to its end once a slot is free."""
    hold = await subject.request(QUESTION, 2000)
    alone = await subject.ask(QUESTION, 4)
    async with _entered(subject, hold, MAX_SEQUENCES - 1):
        async with subject.engine.submit(hold) as last:
            await anext(last)
            late = asyncio.create_task(subject.ask(QUESTION, 4))
            while not subject.engine.load_figures().waiting_sequences:
                await asyncio.sleep(0)
        assert (await late).ids() == alone.ids()
    await until_idle(subject)


async def test_an_unknown_adapter_is_refused(subject: Subject) -> None:
    """An adapter nobody loaded is NotFound and takes no slot."""
    with pytest.raises(NotFound, match="nowhere"):
        await subject.ask(QUESTION, adapter="nowhere")
    assert subject.engine.load_figures().running_sequences == 0


async def test_the_chosen_tokens_logprobs(subject: Subject) -> None:
    """Asked for, every token has its log-probability; else none has."""
    answer = await subject.ask(QUESTION, 12, logprobs=0)
    assert len(answer.logprobs()) == 12
    assert all(each.logprob <= 0 and each.top == () for each in answer.logprobs())
    assert (await subject.ask(QUESTION, 12)).logprobs() == []


async def test_the_facts_are_complete(subject: Subject) -> None:
    """A worker can say who it is: hashes are hashes, numbers are there."""
    facts = subject.engine.facts
    fingerprints = (facts.revision, facts.tokenizer_fingerprint, facts.chat_template_fingerprint)
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in fingerprints)
    assert facts.context_length > 0
    assert facts.engine
    assert facts.build
    assert facts.capabilities.max_choices <= MAX_SEQUENCES


async def test_what_is_not_told_is_not_claimed(subject: Subject) -> None:
    """An engine outside the suite for KV caches says so, and tells and counts no block."""
    facts = subject.engine.facts
    await subject.ask(QUESTION, 4)
    if facts.capabilities.kv_events:
        assert facts.engine in TELLING_KV
        return
    assert facts.engine not in TELLING_KV
    assert facts.block_size == 0
    assert subject.engine.load_figures().kv_blocks is None
    assert not subject.kv.held()
