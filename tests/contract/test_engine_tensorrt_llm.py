"""What only the TensorRT-LLM engine promises, on the strict fake."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from inference_svc.engine import FinishReason, Guided, Retention, Sampling
from inference_svc.engines.tensorrt_llm import TensorRtLlmEngine
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from inference_svc.slots import Slots
from inference_svc.tensorrt_llm_settings import SpeculativeSettings, TensorRtLlmSettings
from sidecache.errors import EngineFailed, InvalidRequest, SetupError
from sidecache.kv_blocks import BlockHasher
from tests.contract.engines import MAX_SEQUENCES, MAX_WAITING, Subject
from tests.contract.engines import tensorrt_llm as a_subject
from tests.fakes.tensorrt_llm.kv_cache import Bugs
from tests.fakes.tensorrt_llm.llm import FakeLLM, Script
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm
from tests.fixtures.checkpoint import make_checkpoint, readable_tokens

QUESTION = "Write a short poem about the sea."
LONG = QUESTION * 40
OLD = frozenset(
    {
        "BaseLLM.generate_async(priority)",
        "BaseLLM.generate_async(trace_headers)",
        "BaseLLM.generate_async(conversation_params)",
        "SchedulerConfig.waiting_queue_policy",
        "Eagle3DecodingConfig",
    }
)
FAST = {"feed_timeout_s": 0.05}


class Holder:
    """Remembers which names a listener was told are held."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.cleared = 0

    def __call__(self, event: KvEvent) -> None:
        match event:
            case BlocksStored(hashes, parent):
                assert parent is None or parent in self.held
                self.held |= set(hashes)
            case BlocksRemoved(hashes):
                self.held -= set(hashes)
            case CacheCleared():
                self.held.clear()
                self.cleared += 1


class Bench:
    """An engine on its fake, with everything a test wants to look at."""

    def __init__(self, folder: Path, script: Script | None = None, **settings: Any) -> None:
        script = script or Script()
        if script.tokens == Script.tokens:
            script = replace(script, tokens=readable_tokens(folder))
        self.fake = FakeTensorRtLlm(script)
        self.holder = Holder()
        self.engine = TensorRtLlmEngine(
            folder,
            "fake",
            TensorRtLlmSettings(**{**FAST, **settings}),
            Slots(MAX_SEQUENCES, MAX_WAITING),
            lambda: TensorRtLlmApi(self.fake.import_module),
        )
        self.engine.listen_kv(self.holder)
        self.subject = Subject(self.engine, lambda _: "")

    @property
    def llm(self) -> FakeLLM:
        return self.fake.llms[-1]

    async def __aenter__(self) -> Self:
        await self.engine.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.aclose()


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for another thread's doing."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def names(prompt: list[int], salt: str = "", adapter: str = "") -> list[int]:
    """The names of a prompt's blocks; the engine never stores the last token."""
    return BlockHasher(32, adapter, salt).hashes(prompt[:-1])


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


async def test_a_request_in_the_engines_words(checkpoint_folder: Path) -> None:
    """Priority, salt, retention, grammar and trace arrive under the engine's own names."""
    tracer = TracerProvider().get_tracer("test")
    async with Bench(checkpoint_folder, Script(guided=(30, 31, 32))) as bench:
        with tracer.start_as_current_span("request") as span:
            answer = await bench.subject.ask(
                QUESTION,
                cache_salt="red",
                priority=50,
                retention=Retention(32, 90, 60.0),
                guided=Guided("json_schema", "{}"),
            )
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        call = bench.llm.calls[-1]
        assert call["cache_salt"] == "red"
        assert call["priority"] == 0.75
        assert trace_id in call["trace_headers"]["traceparent"]
        (kept,) = call["kv_cache_retention_config"].token_range_retention_configs
        assert (kept.token_start, kept.token_end, kept.priority) == (0, 32, 90)
        assert kept.duration_ms.total_seconds() == 60
        assert call["sampling_params"].guided_decoding.json == "{}"
        assert call["sampling_params"].detokenize is False
        assert answer.ids() == [30, 31, 32]
        assert answer.reason() is FinishReason.STOP


async def test_unseeded_requests_differ(checkpoint_folder: Path) -> None:
    """The engine's own default is one seed for everybody, so each request gets its own."""
    async with Bench(checkpoint_folder) as bench:
        answers = [
            await bench.subject.ask(QUESTION, sampling=Sampling(temperature=1.0)) for _ in range(2)
        ]
        assert answers[0].ids() != answers[1].ids()


async def test_a_seed_is_refused_where_it_may_be_ignored(checkpoint_folder: Path) -> None:
    """Until the operator has seen that the sampler obeys seeds, none is accepted."""
    async with Bench(checkpoint_folder, Script(ignore_seeds=True)) as bench:
        with pytest.raises(InvalidRequest, match="seed"):
            await bench.subject.ask(QUESTION, sampling=Sampling(temperature=1.0, seed=4))
        # Greedy decoding has nothing to seed.
        await bench.subject.ask(QUESTION, sampling=Sampling(seed=4))


async def test_other_tokens_logprobs(checkpoint_folder: Path) -> None:
    """As many others as asked for, without the token itself, likeliest first."""
    async with Bench(checkpoint_folder, max_top_logprobs=5) as bench:
        answer = await bench.subject.ask(QUESTION, 8, logprobs=3)
        for token_id, each in zip(answer.ids(), answer.logprobs(), strict=True):
            assert len(each.top) == 3
            assert token_id not in dict(each.top)
            assert [value for _, value in each.top] == sorted(
                (value for _, value in each.top), reverse=True
            )


async def test_an_end_of_sequence_stops(checkpoint_folder: Path) -> None:
    """The engine's own end is reason STOP, and a continuation after it only says so."""
    async with Bench(checkpoint_folder, Script(end_after=5)) as bench:
        answer = await bench.subject.ask(QUESTION, 24)
        assert len(answer.ids()) == 6
        assert answer.reason() is FinishReason.STOP


async def test_adapters_are_the_engines(checkpoint_folder: Path, tmp_path: Path) -> None:
    """An adapter is asked for by name, number and folder, and its blocks are its own."""
    adapters = {"sql": tmp_path, "law": tmp_path}
    async with Bench(checkpoint_folder, adapters=adapters) as bench:
        plain = await bench.subject.ask(LONG, 8)
        adapted = await bench.subject.ask(LONG, 8, adapter="law")
        lora = bench.llm.calls[-1]["lora_request"]
        assert (lora.lora_name, lora.lora_int_id, lora.lora_path) == ("law", 2, str(tmp_path))
        assert bench.engine.facts.adapters == ("sql", "law")
        assert plain.ids() != adapted.ids()
        assert adapted.deltas[0].cached_prompt_tokens == 0
        prompt = list((await bench.subject.request(LONG, 4)).prompt_token_ids)
        await until(lambda: set(names(prompt, adapter="law")) <= bench.holder.held)


async def test_an_older_version_does_without(checkpoint_folder: Path) -> None:
    """What 1.2 does not have is not used, and not claimed."""
    async with Bench(checkpoint_folder, Script(without=OLD)) as bench:
        assert not bench.engine.facts.capabilities.priorities
        answer = await bench.subject.ask(QUESTION, 8, priority=50)
        assert len(answer.ids()) == 8
        assert not {"priority", "trace_headers"} & set(bench.llm.calls[-1])


async def test_a_dead_engine_ends_its_requests(checkpoint_folder: Path) -> None:
    """Every request learns that the engine died, later ones too, and so does health."""
    async with Bench(checkpoint_folder, Script(die_after_steps=60)) as bench:
        with pytest.raises(EngineFailed, match="has died"):
            await bench.subject.ask(QUESTION, 2000)
        failure = await asyncio.wait_for(bench.engine.wait_failed(), 1)
        assert "has died" in failure.text
        with pytest.raises(EngineFailed):
            await bench.subject.ask(QUESTION, 4)
        assert bench.engine.load_figures().running_sequences == 0


async def test_a_hung_engine_is_silent(checkpoint_folder: Path) -> None:
    """An engine that stops stepping is silent for longer and longer; an idle one is not."""
    async with Bench(checkpoint_folder, Script(hang_after_steps=60), abort_timeout_s=0.1) as bench:
        assert bench.engine.silent_s() == 0
        request = await bench.subject.request(QUESTION, 2000)
        async with bench.engine.submit(request) as deltas:
            await anext(deltas)
            await until(lambda: bench.engine.silent_s() > 0.2)
        # Nor does it obey the abort, which nobody waits for for ever.
        failure = await asyncio.wait_for(bench.engine.wait_failed(), 2)
        assert "did not end within 0.1 s" in failure.text


async def test_a_request_too_long_is_refused_alone(checkpoint_folder: Path) -> None:
    """The engine's own refusal ends one request and leaves the others."""
    async with Bench(checkpoint_folder, Script(max_seq_len=200)) as bench:
        with pytest.raises(InvalidRequest, match="too many"):
            await bench.subject.ask(QUESTION, 400)
        assert len((await bench.subject.ask(QUESTION, 8)).ids()) == 8


async def test_logprobs_and_aborts_on_a_built_engine(checkpoint_folder: Path) -> None:
    """Issue 10810: there, a request with log-probabilities runs to its end instead."""
    script = Script(logprobs_kill=True)
    bench = Bench(checkpoint_folder, script, backend="tensorrt", guided_decoding_backend=None)
    async with bench:
        request = await bench.subject.request(QUESTION, 40, logprobs=0)
        async with bench.engine.submit(request) as deltas:
            await anext(deltas)
        assert bench.engine.load_figures().running_sequences == 1
        await until(lambda: not bench.engine.load_figures().running_sequences)
        assert len((await bench.subject.ask(QUESTION, 8)).ids()) == 8


async def test_drafts_come_without_logprobs(checkpoint_folder: Path) -> None:
    """With drafts the engine has none to give, so none may be asked for."""
    drafts = SpeculativeSettings(method="ngram", max_draft_len=4)
    async with Bench(checkpoint_folder, speculative=drafts) as bench:
        assert bench.llm.arguments["speculative_config"].max_matching_ngram_size == 2
        with pytest.raises(InvalidRequest, match="speculative"):
            await bench.subject.ask(QUESTION, 4, logprobs=0)


async def test_load_comes_from_the_statistics(checkpoint_folder: Path) -> None:
    """How full the KV cache is, is the engine's own figure."""
    async with Bench(checkpoint_folder, Script(blocks=64)) as bench:
        request = await bench.subject.request(LONG, 2000)
        blocks = len(names(list(request.prompt_token_ids)))
        async with bench.engine.submit(request) as deltas:
            await anext(deltas)
            await until(lambda: bench.engine.load_figures().kv_cache_usage == blocks / 64)


@pytest.mark.parametrize(
    ("script", "settings", "says"),
    [
        (Script(without=frozenset({"tensorrt_llm"})), {}, r"sidecache\[tensorrt-llm\].*nvidia"),
        (Script(gpus=()), {}, "needs an NVIDIA GPU"),
        (Script(), {"tensor_parallel_size": 2}, "needs 2 GPUs and 1 are visible"),
        (Script(die_at_start="CUDA out of memory"), {}, "lower kv_memory_share"),
        (Script(die_at_start="boom"), {}, "could not load .*: boom"),
        (Script(die_after_steps=1), {}, "cannot generate"),
        (
            Script(without=frozenset({"tensorrt_llm._tensorrt_engine"})),
            {"backend": "tensorrt"},
            "does not have any more",
        ),
        (Script(gpus=(("A100", (8, 0)),)), {"kv_cache_dtype": "nvfp4"}, "nvfp4 does not run on"),
        (Script(), {"quantization": "fp8"}, "is set to fp8, but .* holds none"),
    ],
)
async def test_what_cannot_start_says_why(
    checkpoint_folder: Path, script: Script, settings: dict[str, Any], says: str
) -> None:
    """No extra, no GPU, no memory, a crash at the start: one clear error each."""
    bench = Bench(checkpoint_folder, script, **settings)
    with pytest.raises(SetupError, match=says):
        async with bench:
            pass
    await bench.engine.aclose()


@pytest.mark.parametrize(
    ("algorithm", "capability", "runs"),
    [
        ("FP8", (9, 0), True),
        ("FP8", (8, 0), False),
        ("NVFP4", (10, 0), True),
        ("NVFP4", (9, 0), False),
        ("W4A16_AWQ", (8, 0), True),
        ("W4A16_AWQ", (10, 0), False),
        ("W4A16_GPTQ", (9, 0), True),
        ("FP8_BLOCK_SCALES", (12, 0), False),
    ],
)
async def test_quantization_must_suit_the_gpu(
    smollm2_path: Path,
    tmp_path: Path,
    algorithm: str,
    capability: tuple[int, int],
    runs: bool,
) -> None:
    """What the GPU has no kernels for is refused before anything is loaded."""
    make_checkpoint(tmp_path, smollm2_path)
    (tmp_path / "hf_quant_config.json").write_text(
        f'{{"quantization": {{"quant_algo": "{algorithm}", "kv_cache_quant_algo": "FP8"}}}}'
    )
    bench = Bench(tmp_path, Script(gpus=(("GPU", capability),)))
    if runs:
        async with bench:
            assert "kv auto/FP8" in bench.engine.facts.build
        return
    with pytest.raises(SetupError, match="does not run on GPU"):
        await bench.engine.load()
    assert not bench.fake.llms


async def test_closing_twice_is_safe(checkpoint_folder: Path) -> None:
    """Closing ends what runs; closing again does nothing."""
    async with a_subject(checkpoint_folder) as subject:
        request = await subject.request(QUESTION, 2000)
        with pytest.raises(EngineFailed, match="closed"):
            async with subject.engine.submit(request) as deltas:
                await anext(deltas)
                await subject.engine.aclose()
                async for _ in deltas:
                    pass
        await subject.engine.aclose()
