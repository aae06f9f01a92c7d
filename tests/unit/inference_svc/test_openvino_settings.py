"""Which settings of the OpenVINO engine stand together, and what they say of exactness."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference_svc.openvino_settings import OpenVinoSettings

CLASHES: dict[str, tuple[dict[str, Any], str]] = {
    "a draft without a model": ({"speculative": {"method": "draft_model"}}, "needs speculative"),
    "a lookup with a model": (
        {"speculative": {"method": "prompt_lookup", "draft_model": Path("x")}}, "takes no"),
    "threads of a GPU": ({"device": "GPU", "inference_threads": 2}, "of device CPU"),
    "more guesses than a step": (
        {"speculative": {"method": "prompt_lookup", "num_tokens": 8},
         "max_num_batched_tokens": 8}, "does not fit"),
    "an unknown device": ({"device": "NPU"}, "device"),
    "bf16 keys": ({"kv_cache_precision": "bf16"}, "kv_cache_precision"),
}  # fmt: skip


@pytest.mark.parametrize("clash", CLASHES)
def test_a_clash_names_itself(clash: str) -> None:
    """Settings that contradict each other are refused with the name of one."""
    values, words = CLASHES[clash]
    with pytest.raises(ValidationError, match=words):
        OpenVinoSettings.model_validate(values)


def test_the_defaults_are_exact() -> None:
    """Nothing but the library and the processor is in the build of a default worker."""
    assert OpenVinoSettings().exact
    assert OpenVinoSettings().deviations() == []


@pytest.mark.parametrize(
    "values",
    [
        {"kv_cache_precision": "u8"},
        {"kv_cache_precision": "f16"},
        {"activation_group_size": 32},
        {"device": "GPU.1"},
        {"speculative": {"method": "prompt_lookup"}},
    ],
)
def test_whatever_changes_numbers_is_in_the_build(values: dict[str, Any]) -> None:
    """No stream may move between two such workers."""
    settings = OpenVinoSettings.model_validate(values)
    assert not settings.exact
    assert len(settings.deviations()) == 1
