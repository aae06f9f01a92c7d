"""The strict fake refuses what the real API would refuse."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.generate_tensorrt_llm_surface import (
    BINDINGS,
    EXPORTS,
    FILES,
    VERSION,
    differences,
    surface,
)
from tests.fakes.generate_tensorrt_llm_surface import _class as described
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm
from tests.fakes.tensorrt_llm.surface import Surface, read_surface
from tests.fakes.tensorrt_llm_sources import Provenance, Sources

API: Any = FakeTensorRtLlm().import_module("tensorrt_llm.llmapi")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("KvCacheConfig", {"event_buffer_size": 1}, ValueError),
        ("KvCacheConfig", {"tokens_per_block": "32"}, ValueError),
        ("KvCacheConfig", {"tokens_per_block": True}, ValueError),
        ("KvCacheConfig", {"free_gpu_memory_fraction": 1.5}, ValueError),
        ("SchedulerConfig", {"capacity_scheduler_policy": "BEST"}, ValueError),
        ("SamplingParams", {"max_new_tokens": 3}, TypeError),
        ("SamplingParams", {"top_k": 0.5}, TypeError),
        ("SamplingParams", {"guided_decoding": "json"}, TypeError),
        ("NGramDecodingConfig", {"max_draft_len": 0}, ValueError),
        ("Eagle3DecodingConfig", {"max_draft_len": 3}, ValueError),
        ("KvCacheRetentionConfig", {"token_range_retention_configs": []}, TypeError),
        ("KvCacheRetentionConfig", {}, TypeError),
    ],
)
def test_what_is_not_in_the_surface_is_refused(
    name: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A misspelt argument, one of another type, one out of bounds, one missing."""
    with pytest.raises(error):
        getattr(API, name)(**arguments)


def test_sampling_params_takes_no_positions() -> None:
    """It is a keyword-only dataclass."""
    with pytest.raises(TypeError):
        API.SamplingParams(1)


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": {"prompt_token_ids": [1]}, "max_tokens": 3},
        {"inputs": {"prompt_token_ids": (1, 2)}},
        {"inputs": {"tokens": [1]}},
        {"inputs": "text", "cache_salt": 5},
        {"inputs": "text", "sampling_params": {"max_tokens": 3}},
        {"streaming": True},
    ],
)
def test_a_call_the_real_method_would_not_take_is_refused(given: dict[str, Any]) -> None:
    """Unknown names, other types and missing arguments of generate_async."""
    with pytest.raises(TypeError):
        FakeTensorRtLlm().surface.check_call("BaseLLM", "generate_async", given)


def test_modules_offer_no_more_than_the_real_ones() -> None:
    """A name or a module that does not exist cannot be had."""
    with pytest.raises(AttributeError):
        _ = API.LoraConfig
    with pytest.raises(ModuleNotFoundError):
        FakeTensorRtLlm().import_module("tensorrt_llm.executor.secrets")


def test_the_surface_says_where_it_is_from() -> None:
    """A version, and for each class a file whose text is of a commit that is named."""
    document = read_surface()
    assert document["version"]
    assert document["note"]
    files = {entry["file"] for entry in document["classes"].values()} | {EXPORTS}
    assert files == set(document["sources"])
    for commit in document["sources"].values():
        assert re.fullmatch(r"([\w.-]+/[\w.-]+@)?[0-9a-f]{40}", commit)


def test_a_second_name_means_the_same_field() -> None:
    """As pydantic's AliasChoices; a version that only has the second name refuses the first."""
    one = API.NGramDecodingConfig(max_draft_len=2, speculative_model_dir="/head")
    assert one.speculative_model == "/head"
    renamed = {"DecodingBaseConfig.speculative_model": "speculative_model_dir"}
    other: Any = Surface(renamed=renamed).make("NGramDecodingConfig")
    assert other(speculative_model_dir="/head").speculative_model_dir == "/head"
    with pytest.raises(ValueError, match="speculative_model is no field"):
        other(speculative_model="/head")


def test_the_generator_reads_signatures_only() -> None:
    """Fields with defaults and bounds, methods with arguments; nothing private."""
    source = '''
class ThingConfig(StrictBaseModel):
    """Text that is not taken."""
    size: int = Field(default=3, ge=1, description="not taken")
    name: str = Field(description="needed")
    home: str = Field("/", validation_alias=AliasChoices("home", "folder"))
    _hidden: int = PrivateAttr(default=1)

    def grow(self, by: float = 0.5, *, to: int = 2) -> None:
        secret = 1

    @staticmethod
    def weigh(load: int) -> int: ...
'''
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    assert described(node) == {
        "kind": "pydantic",
        "bases": ["StrictBaseModel"],
        "fields": {
            "size": {"type": "int", "ge": 1, "default": "3"},
            "name": {"type": "str", "required": True},
            "home": {"type": "str", "aliases": ["home", "folder"], "default": "'/'"},
        },
        "properties": [],
        "methods": {
            "grow": {
                "by": {"type": "float", "default": "0.5"},
                "to": {"type": "int", "default": "2"},
            },
            "weigh": {"load": {"type": "int"}},
        },
        "attributes": [],
    }


BOUND = """
    nb::class_<X>(m, "TokenRangeRetentionConfig")
        .def(nb::init<A>(), nb::arg("token_start"), nb::arg("token_end") = nb::none());
    nb::class_<Y>(m, "kvCacheRetentionConfig")
        .def(nb::init<B>(), nb::arg("token_range_retention_configs"),
            nb::arg("transfer_mode") = tle::Mode::DRAM, nb::arg("directory") = nb::none());
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The least that has every file and class the generator wants."""
    files = {
        name: "".join(f"class {each}:\n    pass\n" for each in wanted)
        for name, wanted in FILES.items()
    }
    files |= {BINDINGS: BOUND, EXPORTS: '__all__ = ["LLM"]', VERSION: '__version__ = "9.9"'}
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    return tmp_path / "tree"


def test_a_git_directory_without_a_checkout_is_read_too(tree: Path) -> None:
    """A bare clone at its commit gives what the checkout gives, and the commit is written."""
    before = surface(Sources(tree), "")
    assert before["version"] == "9.9"
    assert set(before["sources"].values()) == {"not a git checkout"}
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", tree, *words], check=True)  # noqa: S607
    (tree / VERSION).write_text('__version__ = "10"')
    read = surface(Sources(tree / ".git"), "")
    assert read == before | {"sources": read["sources"]}
    (commit,) = set(read["sources"].values())
    assert len(commit) == 40
    assert surface(Sources(tree), "")["version"] == "10"
    with pytest.raises(SystemExit, match=r"no .* at elsewhere"):
        Sources(tree / ".git", "elsewhere").text(VERSION)


def test_single_files_need_a_provenance_for_each(tree: Path, tmp_path: Path) -> None:
    """Texts of several commits: the surface says which is of which, or is not made."""
    (tree / VERSION).unlink()
    said = {name: f"someone/copy@{index:040x}" for index, name in enumerate([*FILES, BINDINGS])}
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps({"version": "1.x", "sources": said}))
    with pytest.raises(SystemExit, match=r"does not say where .*__init__\.py is from"):
        surface(Sources(tree, provenance=Provenance.read(file)), "")
    said[EXPORTS] = "someone/copy@" + "f" * 40
    made = surface(Sources(tree, provenance=Provenance("1.x", said)), "by hand")
    assert (made["version"], made["note"], made["sources"]) == ("1.x", "by hand", said)


def test_defaults_of_bindings_are_taken(tree: Path) -> None:
    """What C++ gives an argument that is left out, in its words; its nothing is ours."""
    fields = surface(Sources(tree), "")["classes"]["KvCacheRetentionConfig"]["fields"]
    assert fields["token_range_retention_configs"]["required"]
    assert fields["transfer_mode"]["default"] == "tle::Mode::DRAM"
    assert fields["directory"]["default"] == "None"


def test_the_generator_wants_every_file_and_class(tree: Path) -> None:
    """A newer version that moved something is noticed, not half read."""
    (tree / "tensorrt_llm/lora_helper.py").write_text("class Other: ...")
    with pytest.raises(SystemExit, match=r"lora_helper\.py has no class LoraConfig"):
        surface(Sources(tree), "")
    (tree / "tensorrt_llm/lora_helper.py").unlink()
    with pytest.raises(SystemExit, match=r"no tensorrt_llm/lora_helper\.py"):
        surface(Sources(tree), "")


def test_versions_can_be_compared() -> None:
    """What was renamed, added or given another default is named by its path."""
    one = {"A": {"fields": {"size": {"default": "3"}, "old": {}}}}
    other = {"A": {"fields": {"size": {"default": "4"}, "new": {}}}}
    assert differences(one, other) == [
        'A.fields.new: "nothing", there {}',
        'A.fields.old: {}, there "nothing"',
        'A.fields.size.default: "3", there "4"',
    ]
    assert differences(one, one) == []
