"""A request in TensorRT-LLM's words, on names and types that its sources have."""

from typing import Any

import pytest

from inference_svc.engine import GenerationRequest, Sampling
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.engines.tensorrt_llm_sampling import sampling_params
from tests.fakes.tensorrt_llm.llm import Script
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm


def chosen(request: GenerationRequest, ends: tuple[int, ...] = (7,), done: int = 0) -> Any:
    """The sampling parameters as the library would get them."""
    api = TensorRtLlmApi(FakeTensorRtLlm(Script()).import_module)
    return sampling_params(request, done=done, seed=2**63 + 5, end_token_ids=ends, api=api)


def test_every_end_of_the_model_ends_a_choice() -> None:
    """The first one by its own name, the others as stop tokens."""
    request = GenerationRequest("r", (1, 2), 10)
    several = chosen(request, ends=(7, 8, 9))
    assert (several.end_id, several.pad_id, several.stop_token_ids) == (7, 7, [8, 9])
    assert chosen(request).stop_token_ids is None


def test_what_is_done_is_not_generated_again() -> None:
    """A continuation gets the rest of its tokens."""
    assert chosen(GenerationRequest("r", (1,), 10), done=4).max_tokens == 6


def test_greedy_needs_no_seed() -> None:
    """Greedy is the best token alone; drawing takes the seed as 63 bits hold it."""
    greedy = chosen(GenerationRequest("r", (1,), 10))
    assert (greedy.top_k, greedy.seed) == (1, None)
    drawn = chosen(GenerationRequest("r", (1,), 10, Sampling(temperature=0.7, top_p=0.9, top_k=4)))
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed) == (0.7, 0.9, 4, 5)


@pytest.mark.parametrize(
    ("sampling", "name", "value"),
    [
        (Sampling(repetition_penalty=1.2), "repetition_penalty", 1.2),
        (Sampling(presence_penalty=0.5), "presence_penalty", 0.5),
        (Sampling(frequency_penalty=-0.5), "frequency_penalty", -0.5),
    ],
)
def test_a_penalty_goes_by_its_own_name(sampling: Sampling, name: str, value: float) -> None:
    """And is left to the library where nobody asked for it."""
    assert getattr(chosen(GenerationRequest("r", (1,), 10, sampling)), name) == value
    assert getattr(chosen(GenerationRequest("r", (1,), 10)), name) is None
