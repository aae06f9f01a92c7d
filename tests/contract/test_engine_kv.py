"""What every engine that tells of its KV cache promises about it."""

import asyncio
from collections.abc import Iterator
from itertools import count, takewhile

import pytest

from inference_svc.engine import Continuation, GenerationRequest
from sidecache.kv_blocks import BlockHasher
from tests.contract.engines import (
    TELLING_KV,
    Answer,
    Subject,
    collect,
    openvino_subject,
    scripted_subject,
    tensorrt_llm_subject,
)
from tests.contract.test_engine import until_idle

__all__ = ["openvino_subject", "scripted_subject", "tensorrt_llm_subject"]
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="session", params=TELLING_KV)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each engine that tells of its KV cache; that the others say so is in the main suite."""
    chosen = request.getfixturevalue(f"{request.param}_subject")
    assert isinstance(chosen, Subject)
    return chosen


_NUMBERS: Iterator[int] = count(1)


def unheard_of() -> str:
    """A question of several blocks that shares its beginning with no other test's."""
    return (
        f"Story number {next(_NUMBERS)} of many, told in the evening. " + "A fox met a crow. " * 20
    )


def held(subject: Subject, tokens: tuple[int, ...], salt: str = "") -> int:
    """Leading blocks of the prompt that the engine's events say it holds."""
    facts = subject.engine.facts
    salt = salt if facts.capabilities.cache_salt else ""
    names = BlockHasher(facts.block_size, salt=salt).hashes(tokens)
    return sum(1 for _ in takewhile(subject.kv.held().__contains__, names))


async def run(subject: Subject, tokens: tuple[int, ...], **more: object) -> Answer:
    """Generate a little from these ids."""
    request = GenerationRequest("test", tokens, 4, **more)  # type: ignore[arg-type]
    async with subject.engine.submit(request) as deltas:
        answer = await collect(deltas)
    await subject.settle()
    return answer


def check_cached(subject: Subject, cached: int | None, blocks: int, prompt_tokens: int) -> None:
    """Cached tokens are the held blocks'; one block at most may be known in part besides.

    Of a prompt of whole blocks an engine may compute the last token again, or its whole block.
    """
    facts = subject.engine.facts
    expected = min(blocks * facts.block_size, prompt_tokens - 1)
    assert cached is not None
    if facts.capabilities.cached_tokens_estimated:
        assert expected <= cached < min(expected + facts.block_size, prompt_tokens)
    else:
        assert cached in {expected, expected // facts.block_size * facts.block_size}


async def test_a_prompt_is_cached_the_second_time(subject: Subject) -> None:
    """Nothing of a new prompt is cached; of a repeated one its whole blocks, never all of it."""
    request = await subject.request(unheard_of(), 4)
    tokens = request.prompt_token_ids
    for _ in range(2):
        blocks = held(subject, tokens)
        answer = await run(subject, tokens)
        check_cached(subject, answer.cached(), blocks, len(tokens))
    assert held(subject, tokens) == len(tokens) // subject.engine.facts.block_size > 1


async def test_the_events_say_what_the_next_request_finds(subject: Subject) -> None:
    """Whatever ran before, together or cancelled: events and cached tokens never disagree."""
    stories = [unheard_of() for _ in range(3)]
    prompts = [
        (await subject.request(story[:length], 4)).prompt_token_ids
        for story in stories
        for length in (len(story), 150, 90)
    ]
    await asyncio.gather(*(run(subject, prompt) for prompt in prompts[::2]))
    await until_idle(subject)
    for prompt in prompts:
        blocks = held(subject, prompt)
        answer = await run(subject, prompt)
        check_cached(subject, answer.cached(), blocks, len(prompt))
        await until_idle(subject)


async def test_a_prompt_of_whole_blocks_computes_its_last_token(subject: Subject) -> None:
    """The next token comes of the last one, so that is never called cached."""
    block_size = subject.engine.facts.block_size
    tokens = (await subject.request(unheard_of(), 4)).prompt_token_ids[: 3 * block_size]
    await run(subject, tokens)
    answer = await run(subject, tokens)
    assert held(subject, tokens) == 3
    check_cached(subject, answer.cached(), 3, len(tokens))


async def test_salts_part_prompts_where_the_engine_says_so(subject: Subject) -> None:
    """Under another salt nothing is cached, or the engine does not claim it."""
    tokens = (await subject.request(unheard_of(), 4)).prompt_token_ids
    await run(subject, tokens, cache_salt="mine")
    mine = (await run(subject, tokens, cache_salt="mine")).cached()
    other = (await run(subject, tokens, cache_salt="other")).cached()
    assert mine
    assert other == (0 if subject.engine.facts.capabilities.cache_salt else mine)
    assert held(subject, tokens, "mine") == len(tokens) // subject.engine.facts.block_size


async def test_leaving_early_gives_the_blocks_back(subject: Subject) -> None:
    """A stream that is left, before or after its first token, keeps no block in use."""
    request = await subject.request(unheard_of(), 2000)
    async with subject.engine.submit(request) as deltas:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(deltas)
    await until_idle(subject)
    async with subject.engine.submit(request) as deltas:
        await anext(deltas)
        await anext(deltas)
    await until_idle(subject)
    assert subject.engine.load_figures().kv_cache_usage == 0
    await subject.settle()
    blocks = held(subject, request.prompt_token_ids)
    answer = await run(subject, request.prompt_token_ids)
    check_cached(subject, answer.cached(), blocks, len(request.prompt_token_ids))


async def test_choices_share_their_prompt(subject: Subject) -> None:
    """Three choices say once what was cached when they came, and store their prompt once."""
    tokens = (await subject.request(unheard_of(), 4)).prompt_token_ids
    first = await run(subject, tokens, n=3)
    again = await run(subject, tokens, n=3)
    check_cached(subject, first.cached(), 0, len(tokens))
    blocks = len(tokens) // subject.engine.facts.block_size
    check_cached(subject, again.cached(), blocks, len(tokens))


async def test_a_continuation_finds_the_prompt_and_leaves_more(subject: Subject) -> None:
    """What was delivered elsewhere is computed and held here, after the prompt's own blocks."""
    block_size = subject.engine.facts.block_size
    question = unheard_of()
    whole = await subject.ask(question, block_size + 8)
    tokens = (await subject.request(question)).prompt_token_ids
    delivered = tuple(whole.ids()[: block_size + 4])
    text = subject.decode(delivered[:-1]).rstrip("\ufffd")
    rest = await subject.ask(question, block_size + 8, continuation=Continuation(delivered, text))
    assert len(tokens) - 1 <= (rest.cached() or 0) <= len(tokens)
    both = tokens + delivered
    await subject.settle()
    assert held(subject, both) == len(both) // block_size
    answer = await run(subject, (*both, *tokens[:5]))
    assert (answer.cached() or 0) >= held(subject, both) * block_size


async def test_the_facts_of_the_cache_fit_together(subject: Subject) -> None:
    """Block size and capacity are known, and what is held never exceeds them."""
    await subject.ask(unheard_of(), 4)
    await subject.settle()
    load = subject.engine.load_figures()
    assert subject.engine.facts.block_size > 0
    assert load.kv_blocks
    assert len(subject.kv.held()) <= load.kv_blocks
    assert load.kv_cache_usage is not None
    assert 0 <= load.kv_cache_usage <= 1
