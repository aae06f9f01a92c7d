"""What only the TensorRT-LLM engine promises of a request, on the strict fake."""

import asyncio
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from inference_svc.engine import FinishReason, Guided, Retention, Sampling
from inference_svc.tensorrt_llm_settings import SpeculativeSettings
from sidecache.errors import EngineFailed, InvalidRequest
from tests.contract.engines import tensorrt_llm as a_subject
from tests.contract.tensorrt_llm_bench import LONG, QUESTION, Bench, names, until
from tests.fakes.tensorrt_llm.llm import Script


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


async def test_a_prompt_too_long_for_a_step_is_refused(checkpoint_folder: Path) -> None:
    """Without chunked prefill the engine refuses it in the call itself, and lives on."""
    bench = Bench(checkpoint_folder, Script(), chunked_prefill=False, max_num_tokens=64)
    async with bench:
        with pytest.raises(InvalidRequest, match="should not exceed max_num_tokens"):
            await bench.subject.ask(LONG, 4)
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
