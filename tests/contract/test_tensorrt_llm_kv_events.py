"""What the TensorRT-LLM engine tells of its KV cache, on the strict fake."""

from functools import partial
from pathlib import Path

import pytest

from tests.contract.tensorrt_llm_bench import LONG, QUESTION, Bench, names, until
from tests.fakes.tensorrt_llm.kv_cache import Bugs
from tests.fakes.tensorrt_llm.llm import Script


async def test_events_tell_what_the_cache_holds(checkpoint_folder: Path) -> None:
    """After a prompt its blocks are told, and only then does it find its tokens cached."""
    async with Bench(checkpoint_folder) as bench:
        request = await bench.subject.request(LONG, 4)
        prompt = list(request.prompt_token_ids)
        assert not set(names(prompt)) & bench.holder.held
        cold = await bench.subject.ask(LONG, 4)
        await until(lambda: set(names(prompt)) <= bench.holder.held)
        warm = await bench.subject.ask(LONG, 4)
        assert cold.deltas[0].cached_prompt_tokens == 0
        assert warm.deltas[0].cached_prompt_tokens == 32 * len(names(prompt))
        assert warm.ids() == cold.ids()
        assert all(each.cached_prompt_tokens is None for each in warm.deltas[1:])


async def test_names_held_are_as_many_as_blocks_held(checkpoint_folder: Path) -> None:
    """Answers and evictions included: nothing is told twice or forgotten."""
    async with Bench(checkpoint_folder, Script(blocks=24)) as bench:
        for index in range(12):
            await bench.subject.ask(f"{index} " + QUESTION * 12, 70)
        await until(lambda: len(bench.holder.held) == len(bench.llm.cache.numbers))
        assert bench.holder.held
        assert bench.engine.kv_translator is not None
        counts = bench.engine.kv_translator.counts
        assert (counts.unknown_parents, counts.gaps, counts.garbled) == (0, 0, 0)


async def test_salts_have_blocks_of_their_own(checkpoint_folder: Path) -> None:
    """The same prompt under two salts is computed twice and told under two names."""
    async with Bench(checkpoint_folder) as bench:
        prompt = list((await bench.subject.request(LONG, 4)).prompt_token_ids)
        wanted: set[int] = set()
        for salt in ("red", "blue"):
            answer = await bench.subject.ask(LONG, 4, cache_salt=salt)
            assert answer.deltas[0].cached_prompt_tokens == 0
            wanted |= set(names(prompt, salt))
            await until(partial(wanted.issubset, bench.holder.held))
        assert not set(names(prompt)) & bench.holder.held


async def test_a_wrong_parent_is_not_believed(checkpoint_folder: Path) -> None:
    """Issue 3543: blocks that hang on the wrong parent are left out, not misnamed."""
    async with Bench(checkpoint_folder, Script(bugs=Bugs(wrong_parent=True))) as bench:
        await bench.subject.ask(LONG, 4)
        longer = LONG + QUESTION * 20
        await bench.subject.ask(longer, 4)
        request = await bench.subject.request(longer, 4)
        translator = bench.engine.kv_translator
        assert translator is not None
        await until(lambda: translator.counts.unknown_parents)
        right = names(list(request.prompt_token_ids))
        short = names(list((await bench.subject.request(LONG, 4)).prompt_token_ids))
        assert set(short) <= bench.holder.held
        in_middle = {each for each in bench.holder.held if each not in {*right, *short}}
        # What is left are blocks of answers, none of a prompt's middle.
        assert len(in_middle) <= 2


async def test_null_differences_change_nothing(checkpoint_folder: Path) -> None:
    """Issue 4666: an update without values is an update of nothing."""
    async with Bench(checkpoint_folder, Script(bugs=Bugs(null_updates=True))) as bench:
        prompt = list((await bench.subject.request(LONG, 4)).prompt_token_ids)
        await bench.subject.ask(LONG, 4)
        await until(lambda: set(names(prompt)) <= bench.holder.held)
        await bench.subject.ask(LONG, 4)
        translator = bench.engine.kv_translator
        assert translator is not None
        assert translator.counts.garbled == 0
        assert bench.holder.cleared == 0


async def test_a_lost_event_forgets_the_cache(checkpoint_folder: Path) -> None:
    """A number that is missing means that something changed unheard: start over."""
    async with Bench(checkpoint_folder, Script(bugs=Bugs(lose_event=4))) as bench:
        for index in range(4):
            await bench.subject.ask(f"{index}" + LONG, 4)
        await until(lambda: bench.holder.cleared == 1)


async def test_silent_events_are_noticed(
    checkpoint_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15522: a stream that stays empty while prompts fill blocks is said, once."""
    script = Script(bugs=Bugs(no_events=True))
    async with Bench(checkpoint_folder, script, kv_silence_s=0.1) as bench:
        await bench.subject.ask(LONG, 4)
        await until(lambda: "issue 15522" in caplog.text)
        await bench.subject.ask("another " + LONG, 4)
    assert caplog.text.count("issue 15522") == 1


async def test_kv_events_can_be_off(checkpoint_folder: Path) -> None:
    """Then the engine keeps none and the worker says that it has none."""
    async with Bench(checkpoint_folder, kv_events=False) as bench:
        await bench.subject.ask(LONG, 4)
        assert bench.llm.arguments["kv_cache_config"].event_buffer_max_size == 0
        assert not bench.engine.facts.capabilities.kv_events
        assert not bench.holder.held
