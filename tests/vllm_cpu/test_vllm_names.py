"""Every name we hand to vLLM is one that the installed release knows."""

import dataclasses
import inspect
from pathlib import Path
from typing import get_args

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.loggers import AggregateStatLoggerBase, PrometheusStatLogger

from inference_svc.engine import GenerationRequest, Guided, Sampling
from inference_svc.engines import vllm_api, vllm_arguments
from inference_svc.vllm_settings import Quantization, SpeculativeSettings, VllmSettings


def test_every_engine_argument_is_known() -> None:
    """Whatever the settings say, no argument is one that vLLM has dropped."""
    settings = VllmSettings(
        block_size=16, max_model_len=64, max_num_batched_tokens=64, quantization="fp8",
        tensor_parallel=2, distributed_executor="ray", adapters={"a": Path("a")},
        speculative=SpeculativeSettings(method="ngram"),
    )  # fmt: skip
    given = vllm_arguments.engine_arguments(Path("m"), settings, 4, ("ipc://a", "ipc://b"))
    known = {each.name for each in dataclasses.fields(AsyncEngineArgs)}
    assert given.keys() <= known


def test_every_quantization_is_known() -> None:
    """A setting that vLLM would refuse by name is refused by us."""
    assert set(get_args(Quantization)) <= set(QUANTIZATION_METHODS)


def test_generate_takes_what_it_is_given() -> None:
    """AsyncLLM.generate still has these parameters."""
    known = inspect.signature(AsyncLLM.generate).parameters
    assert {"prompt", "sampling_params", "request_id", "lora_request", "priority"} <= known.keys()


def test_a_collector_is_what_we_listen_to() -> None:
    """A sequence can be added, its collector merges, and it is aborted by its internal name."""
    known = inspect.signature(AsyncLLM.add_request).parameters
    assert {"request_id", "prompt", "params", "lora_request", "priority"} <= known.keys()
    assert "internal" in inspect.signature(AsyncLLM.abort).parameters
    collector = RequestOutputCollector(RequestOutputKind.DELTA, "internal-1")
    assert (collector.request_id, collector.output, collector.get_nowait()) == (
        "internal-1", None, None,
    )  # fmt: skip
    collector.put = list  # an instance takes a method of its own


def test_our_observer_stands_in_for_prometheus() -> None:
    """vLLM adds a Prometheus logger of its own to any list that holds none."""
    observer = vllm_api._observer(lambda _: None)
    assert issubclass(observer, AggregateStatLoggerBase)
    assert isinstance(observer(None, [0]), PrometheusStatLogger)


def test_a_request_becomes_sampling_parameters() -> None:
    """Greedy has no seed; sampled has one that torch takes; text and stops stay ours."""
    greedy = vllm_arguments.sampling_parameters(GenerationRequest("r", (1,), 9), 4, 7, [2])
    assert (greedy.max_tokens, greedy.temperature, greedy.seed) == (5, 0.0, None)
    assert greedy.stop_token_ids == [2]
    assert not greedy.detokenize
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, seed=1)
    request = GenerationRequest("r", (1,), 9, sampling, logprobs=2, guided=Guided("regex", "a+"))
    sampled = vllm_arguments.sampling_parameters(request, 0, 2**64 - 1, [])
    assert 0 <= sampled.seed < 2**63
    assert sampled.logprobs == 3
    assert sampled.structured_outputs.regex == "a+"
