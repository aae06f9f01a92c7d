"""What only the real vLLM can show: KV events, adapters, salts, grammars, death."""

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from inference_svc.engine import FinishReason, GenerationRequest, Guided, Sampling
from inference_svc.engines.vllm import VllmEngine
from inference_svc.slots import Slots
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import EngineFailed, InvalidRequest, SetupError
from sidecache.kv_blocks import BlockHasher
from tests.contract.engines import Answer, collect
from tests.fixtures.tiny_llama import ADAPTER
from tests.fixtures.vllm import BLOCK_SIZE, VllmSubject, vllm

pytestmark = pytest.mark.asyncio(loop_scope="session")

GOOD_PATTERNS = ("[0-9]{3}-[0-9]{4}", "(yes|no|maybe)", "a+b?c*")
PEOPLE = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["age", "ok"],
    "additionalProperties": False,
}


def prompt(first: int, count: int) -> tuple[int, ...]:
    """Ids that no other test's prompt begins with."""
    return tuple((first * 7919 + 31 * place) % 40_000 + 100 for place in range(count))


async def run(subject: VllmSubject, ids: tuple[int, ...], tokens: int = 8, **more: Any) -> Answer:
    async with subject.engine.submit(GenerationRequest("t", ids, tokens, **more)) as deltas:
        return await collect(deltas)


async def until_held(subject: VllmSubject, names: Sequence[int]) -> None:
    await subject.settle()
    assert set(names) <= set(subject.kv.held())


async def test_kv_events_name_the_prompts_blocks(vllm_subject: VllmSubject) -> None:
    """After a prompt its whole blocks are told by the names that a sidecar computes."""
    ids = prompt(1, 5 * BLOCK_SIZE + 3)
    await run(vllm_subject, ids)
    names = BlockHasher(BLOCK_SIZE).hashes(ids)
    assert len(names) == 5
    await until_held(vllm_subject, names)


async def test_cached_tokens_are_those_of_the_blocks_told(vllm_subject: VllmSubject) -> None:
    """What the engine reports as cached is what its KV events promised."""
    ids = prompt(2, 4 * BLOCK_SIZE)
    cold = await run(vllm_subject, (*ids, 5, 6, 7))
    await until_held(vllm_subject, BlockHasher(BLOCK_SIZE).hashes(ids))
    warm = await run(vllm_subject, (*ids, 8, 9))
    assert cold.deltas[0].cached_prompt_tokens == 0
    assert warm.deltas[0].cached_prompt_tokens == len(ids)
    assert all(each.cached_prompt_tokens is None for each in warm.deltas[1:])


async def test_salts_keep_prompts_apart(vllm_subject: VllmSubject) -> None:
    """Under another salt nothing is cached, and the blocks have other names."""
    ids = prompt(3, 3 * BLOCK_SIZE + 1)
    first = await run(vllm_subject, ids, cache_salt="acme")
    other = await run(vllm_subject, ids, cache_salt="umbrella")
    again = await run(vllm_subject, ids, cache_salt="acme")
    cached = [each.deltas[0].cached_prompt_tokens for each in (first, other, again)]
    assert cached == [0, 0, 3 * BLOCK_SIZE]
    for salt in ("acme", "umbrella"):
        await until_held(vllm_subject, BlockHasher(BLOCK_SIZE, salt=salt).hashes(ids))
    assert not set(vllm_subject.kv.held()) & set(BlockHasher(BLOCK_SIZE).hashes(ids))


async def test_an_adapter_changes_the_answer(vllm_subject: VllmSubject) -> None:
    """A known LoRA adapter is used, has blocks of its own, and leaves others alone."""
    ids = prompt(4, 2 * BLOCK_SIZE + 1)
    plain = await run(vllm_subject, ids, 16)
    adapted = await run(vllm_subject, ids, 16, adapter=ADAPTER)
    assert adapted.ids() != plain.ids()
    assert (await run(vllm_subject, ids, 16)).ids() == plain.ids()
    await until_held(vllm_subject, BlockHasher(BLOCK_SIZE, ADAPTER).hashes(ids))


async def test_cleared_blocks_are_told(vllm_subject: VllmSubject) -> None:
    """When the engine has emptied its cache, the listener hears so with the next step."""
    ids = prompt(5, 2 * BLOCK_SIZE + 1)
    await run(vllm_subject, ids)
    names = BlockHasher(BLOCK_SIZE).hashes(ids)
    await until_held(vllm_subject, names)
    engine = vllm_subject.engine
    assert isinstance(engine, VllmEngine)
    assert await engine._api.forget_prefixes(engine._processes.engine)
    other = prompt(50, 2 * BLOCK_SIZE + 1)
    await run(vllm_subject, other)
    await until_held(vllm_subject, BlockHasher(BLOCK_SIZE).hashes(other))
    assert not set(vllm_subject.kv.held()) & set(names)


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
async def test_a_pattern_is_followed(vllm_subject: VllmSubject, pattern: str) -> None:
    """A complete guided answer matches, even where the model only babbles."""
    answer = await run(vllm_subject, prompt(6, 9), 24, guided=Guided("regex", pattern))
    if answer.reason() is FinishReason.STOP:
        assert re.fullmatch(pattern, answer.text()), answer.text()
    else:
        assert answer.text().startswith("a"), "only a+b?c* may go on for ever"


async def test_a_schema_is_followed(vllm_subject: VllmSubject) -> None:
    """A complete guided answer is JSON of the schema."""
    guided = Guided("json_schema", json.dumps(PEOPLE))
    answer = await run(vllm_subject, prompt(7, 9), 200, guided=guided)
    if answer.reason() is FinishReason.STOP:
        assert set(json.loads(answer.text())) == {"age", "ok"}
    else:
        assert answer.text().lstrip().startswith("{")


async def test_the_best_others_come_with_the_chosen(vllm_subject: VllmSubject) -> None:
    """k more log-probabilities for each token, best first, the chosen one not among them."""
    answer = await run(vllm_subject, prompt(8, 9), 8, logprobs=3)
    for token_id, logprob in zip(answer.ids(), answer.logprobs(), strict=True):
        assert len(logprob.top) == 3
        assert token_id not in [other for other, _ in logprob.top]
        values = [value for _, value in logprob.top]
        assert values == sorted(values, reverse=True)
        assert logprob.logprob >= values[0]  # greedy: the chosen one is the best of all


async def test_cancel_takes_one_step(vllm_subject: VllmSubject) -> None:
    """From leaving to a free slot: at most one step and 100 ms, and the engine is idle then."""
    request = GenerationRequest("t", prompt(9, 9), 2000)
    longest_step = slowest = 0.0
    for _ in range(5):
        async with vllm_subject.engine.submit(request) as deltas:
            for _ in range(3):
                began = perf_counter()
                await anext(deltas)
                longest_step = max(longest_step, perf_counter() - began)
            began = perf_counter()
        while vllm_subject.engine.load_figures().running_sequences:
            await asyncio.sleep(0.001)
        slowest = max(slowest, perf_counter() - began)
    assert slowest <= longest_step + 0.1
    # Only a sequence in the batch holds KV blocks, as the engine itself counts them.
    engine = vllm_subject.engine
    assert isinstance(engine, VllmEngine)
    async with asyncio.timeout(5):
        await run(vllm_subject, prompt(10, 5), 2)
        while engine._kv_cache_usage:
            await run(vllm_subject, prompt(10, 5), 2)


async def test_higher_priority_waits_less(vllm_subject: VllmSubject) -> None:
    """Of two that wait for a slot, the one of higher priority gets it first."""
    slots = vllm_subject.engine.load_figures().max_sequences
    order: list[str] = []

    async def late(name: str, priority: int) -> None:
        request = GenerationRequest(name, prompt(11, 5), 2, priority=priority)
        async with vllm_subject.engine.submit(request) as deltas:
            await anext(deltas)
            order.append(name)
            async for _ in deltas:
                pass

    holding = [GenerationRequest("hold", prompt(12, 5), 3000) for _ in range(slots)]
    streams = [vllm_subject.engine.submit(each) for each in holding]
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            await anext(await stream.__aenter__())
        for number, (name, priority) in enumerate((("low", 0), ("high", 5)), 1):
            group.create_task(late(name, priority))
            while vllm_subject.engine.load_figures().waiting_sequences < number:
                await asyncio.sleep(0)
        for stream in streams:
            await stream.__aexit__(None, None, None)
    assert order == ["high", "low"]


async def test_what_vllm_refuses_is_an_invalid_request(vllm_subject: VllmSubject) -> None:
    """A value that only vLLM objects to ends the stream, says why and frees the slot."""
    for more in ({"sampling": Sampling(presence_penalty=9)}, {"logprobs": 90}):
        with pytest.raises(InvalidRequest, match="the engine refuses it"):
            await run(vllm_subject, prompt(15, 5), **more)
    assert not vllm_subject.engine.load_figures().running_sequences


async def test_sampling_without_a_seed_differs(vllm_subject: VllmSubject) -> None:
    """Each request draws a seed of its own."""
    sampling = Sampling(temperature=1.0)
    answers = [await run(vllm_subject, prompt(13, 9), 12, sampling=sampling) for _ in range(2)]
    assert answers[0].ids() != answers[1].ids()


async def test_a_dead_engine_is_told_and_survived(tiny_llama: Path) -> None:
    """Killed in the middle, it fails every stream with EngineFailed, and later ones too."""
    async with vllm(tiny_llama, Slots(2, 4), adapters={}) as subject:
        engine = subject.engine
        assert isinstance(engine, VllmEngine)
        requests = [GenerationRequest("t", prompt(n, 9), 3000) for n in range(4)]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(_outcome(subject, request)) for request in requests]
            while not engine._kv_cache_usage or engine.load_figures().waiting_sequences < 2:
                await asyncio.sleep(0.01)
            for pid in engine.pids:
                os.kill(pid, signal.SIGKILL)
        assert all("engine process ended" in task.result().text for task in tasks)
        assert "engine process ended" in (await engine.wait_failed()).text
        with pytest.raises(EngineFailed, match="engine process ended"):
            await run(subject, prompt(14, 5))
        assert engine.load_figures().running_sequences == 0


async def _outcome(subject: VllmSubject, request: GenerationRequest) -> EngineFailed:
    with pytest.raises(EngineFailed) as failed:
        async with subject.engine.submit(request) as deltas:
            await collect(deltas)
    return failed.value


async def test_a_wrong_architecture_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """What vLLM cannot run is a SetupError that says what vLLM said."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "odd"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NobodyHasThisOne"], "model_type": "nobody"}
    (folder / "config.json").write_text(json.dumps(config))
    engine = VllmEngine(folder, "m", VllmSettings(enforce_eager=True), Slots(1, 1))
    try:
        with pytest.raises(SetupError, match=r"odd.*nobody"):
            await engine.load()
    finally:
        await engine.aclose()


async def test_no_exact_continuation_is_claimed_on_a_cpu(vllm_subject: VllmSubject) -> None:
    """A router would move streams on the strength of it; it is nobody's but an operator's word."""
    assert not vllm_subject.engine.facts.capabilities.exact_continuation


async def test_batch_invariance_on_a_cpu_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for where there are no such kernels it would be claimed and not kept."""
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")  # so that it is taken back afterwards
    engine = VllmEngine(tiny_llama, "m", VllmSettings(batch_invariant=True), Slots(1, 1))
    try:
        with pytest.raises(SetupError, match="batch_invariant needs a GPU"):
            await engine.load()
    finally:
        await engine.aclose()
