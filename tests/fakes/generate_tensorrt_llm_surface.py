"""Writes down what of TensorRT-LLM's API the fake may have: names, arguments, types.

    python -m tests.fakes.generate_tensorrt_llm_surface SOURCES > surface.json
    python -m tests.fakes.generate_tensorrt_llm_surface SOURCES --against surface.json

It belongs into tests/fakes/tensorrt_llm.
SOURCES is a checkout of github.com/NVIDIA/TensorRT-LLM, or a git directory without one (a
bare or mirrored clone), of which ``--revision`` is read. A folder with single files of
several commits will do as well, if ``--provenance`` says which file is of which commit.
The sources are parsed, never run, and only signatures are taken: names, annotations and
defaults. Private names are left out. The files must be those in FILES; what is missing in
one is an error, so that a newer version cannot quietly lose what the engine uses.
``--against`` prints what another surface has otherwise, and ends with 1 if there is
anything.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.fakes.tensorrt_llm_sources import Provenance, Sources

FILES: dict[str, tuple[str, ...]] = {
    "tensorrt_llm/llmapi/llm.py": ("BaseLLM",),
    "tensorrt_llm/llmapi/llm_args.py": (
        "CapacitySchedulerPolicy",
        "ContextChunkingPolicy",
        "WaitingQueuePolicy",
        "DecodingBaseConfig",
        "EagleDecodingConfig",
        "Eagle3DecodingConfig",
        "NGramDecodingConfig",
        "DraftTargetDecodingConfig",
        "MTPDecodingConfig",
        "SchedulerConfig",
        "KvCacheConfig",
        "BaseLlmArgs",
        "TrtLlmArgs",
        "TorchLlmArgs",
    ),
    "tensorrt_llm/lora_helper.py": ("LoraConfig",),
    "tensorrt_llm/sampling_params.py": ("GuidedDecodingParams", "SamplingParams"),
    "tensorrt_llm/executor/request.py": ("LoRARequest",),
    "tensorrt_llm/executor/result.py": (
        "Logprob",
        "CompletionOutput",
        "GenerationResultBase",
        "GenerationResult",
        "IterationResult",
    ),
}
EXPORTS = "tensorrt_llm/llmapi/__init__.py"
VERSION = "tensorrt_llm/version.py"
BINDINGS = "cpp/tensorrt_llm/nanobind/executor/request.cpp"
BOUND = ("TokenRangeRetentionConfig", "kvCacheRetentionConfig")
# C++ argument types of those bindings, as Python sees them.
CPP_TYPES = {
    "token_start": "int",
    "token_end": "Optional[int]",
    "priority": "int",
    "duration_ms": "Optional[timedelta]",
    "token_range_retention_configs": "List[TokenRangeRetentionConfig]",
    "decode_retention_priority": "int",
    "decode_duration_ms": "Optional[timedelta]",
    "transfer_mode": "KvCacheTransferMode",
    "directory": "str",
}

Json = dict[str, Any]
_LONGEST = 200
_BOUNDS = ("ge", "gt", "le", "lt")


def surface(sources: Sources, note: str) -> Json:
    """Everything, ready to be written; ``note`` says where the sources came from."""
    classes: Json = {}
    for name, wanted in FILES.items():
        tree = ast.parse(sources.text(name))
        found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        if missing := set(wanted) - found.keys():
            raise SystemExit(f"{name} has no class {', '.join(sorted(missing))}")
        for cls in wanted:
            classes[cls] = {"file": name, **_class(found[cls])}
    classes |= _bindings(sources.text(BINDINGS))
    return {
        "project": "github.com/NVIDIA/TensorRT-LLM",
        "version": sources.version(VERSION),
        "note": note,
        "sources": {name: sources.commit(name) for name in sorted([*FILES, EXPORTS, BINDINGS])},
        "exports": _exports(sources),
        "classes": classes,
    }


def differences(here: Json, there: Json, where: str = "") -> list[str]:
    """Every name, type and default that two surfaces do not share, with its path."""
    found = []
    for key in sorted({*here, *there}):
        place = f"{where}.{key}" if where else key
        one, other = here.get(key, "nothing"), there.get(key, "nothing")
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, place)
        elif one != other:
            found.append(f"{place}: {_short(one)}, there {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < _LONGEST else f"{text[:_LONGEST]}…"


def _class(node: ast.ClassDef) -> Json:
    bases = [ast.unparse(base) for base in node.bases]
    kind, kw_only = _kind(node, bases)
    entry: Json = {"kind": kind, "bases": bases}
    if kind == "dataclass":
        entry["kw_only"] = kw_only
    if kind == "enum":
        entry["members"] = {
            target.id: ast.literal_eval(each.value)
            for each in node.body
            if isinstance(each, ast.Assign)
            for target in each.targets
            if isinstance(target, ast.Name)
        }
        return entry
    entry["fields"] = {
        each.target.id: _field(each)
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and not each.target.id.startswith("_")
    }
    functions = [
        each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    public = [
        each
        for each in functions
        if not each.name.startswith("_") or each.name in {"__init__", "__aiter__", "__anext__"}
    ]
    properties = [each.name for each in public if _decorated(each, "property")]
    entry["properties"] = properties
    entry["methods"] = {
        each.name: _arguments(each.args, static=_decorated(each, "staticmethod"))
        for each in public
        if each.name not in properties and not _is_validator(each)
    }
    entry["attributes"] = sorted(set(_assigned(functions)))
    return entry


def _kind(node: ast.ClassDef, bases: list[str]) -> tuple[str, bool]:
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if text.startswith("dataclass"):
            return "dataclass", "kw_only=True" in text
    if any("Enum" in base for base in bases):
        return "enum", False
    # In these files a class of annotated fields without a decorator is a pydantic model.
    annotated = any(isinstance(each, ast.AnnAssign) for each in node.body)
    if annotated or any(base.endswith(("Config", "Model", "Args")) for base in bases):
        return "pydantic", False
    return "class", False


def _field(node: ast.AnnAssign) -> Json:
    entry: Json = {"type": ast.unparse(node.annotation)}
    value = node.value
    called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    if value is None:
        return entry | {"required": True}
    if called in {"Field", "field"}:
        assert isinstance(value, ast.Call)
        given = {word.arg: word.value for word in value.keywords if word.arg}
        entry |= {bound: ast.literal_eval(given[bound]) for bound in _BOUNDS if bound in given}
        if aliases := _aliases(given.get("validation_alias")):
            entry["aliases"] = aliases
        default = given.get("default", value.args[0] if value.args else None)
        if default is None and "default_factory" not in given:
            return entry | {"required": True}
        return entry | {"default": ast.unparse(default) if default else "factory"}
    return entry | {"default": ast.unparse(value)}


def _aliases(given: ast.expr | None) -> list[str]:
    """Names that pydantic's AliasChoices takes instead of the field's own."""
    if not isinstance(given, ast.Call) or ast.unparse(given.func) != "AliasChoices":
        return []
    return [ast.literal_eval(each) for each in given.args]


def _arguments(arguments: ast.arguments, *, static: bool = False) -> Json:
    """Every argument but self or cls, with its type and default."""
    given = [*arguments.posonlyargs, *arguments.args][0 if static else 1 :]
    missing = len(given) - len(arguments.defaults)
    defaults = [None] * missing + list(arguments.defaults)
    entry: Json = {}
    for each, default in zip(
        [*given, *arguments.kwonlyargs], [*defaults, *arguments.kw_defaults], strict=True
    ):
        entry[each.arg] = {"type": ast.unparse(each.annotation) if each.annotation else "Any"}
        if default is not None:
            entry[each.arg]["default"] = ast.unparse(default)
    if arguments.kwarg:
        entry["**"] = {"type": "Any"}
    return entry


def _assigned(functions: list[ast.FunctionDef | ast.AsyncFunctionDef]) -> list[str]:
    """Public attributes that __init__ sets."""
    return [
        node.attr
        for function in functions
        if function.name == "__init__"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and not node.attr.startswith("_")
    ]


def _is_validator(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("validator" in ast.unparse(each) for each in function.decorator_list)


def _decorated(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    return any(ast.unparse(each).endswith(name) for each in function.decorator_list)


def _bindings(text: str) -> Json:
    """The constructors of the retention classes, from the nanobind declarations."""
    classes: Json = {}
    for name in BOUND:
        pattern = (
            rf'{name}"?\)?\s*\n?\s*\.def\(\s*nb::init<.*?>\(\),(.*?)\)\s*(?:\.def|;|\n\s*\w+\n|$)'
        )
        found = re.search(pattern, text, re.DOTALL)
        if found is None:
            raise SystemExit(f"{BINDINGS} does not bind {name} as it used to")
        fields: Json = {}
        arguments = re.findall(r'nb::arg\("(\w+)"\)(?:\s*=\s*([\w:]+))?', found.group(1))
        for argument, default in arguments:
            given = {"default": default.replace("nb::none", "None")} if default else {}
            fields[argument] = {"type": CPP_TYPES[argument]} | (given or {"required": True})
        python_name = name[0].upper() + name[1:]
        classes[python_name] = {
            "file": BINDINGS,
            "kind": "binding",
            "bases": [],
            "fields": fields,
            "properties": [],
            "methods": {},
            "attributes": [],
        }
    return classes


def _exports(sources: Sources) -> list[str]:
    tree = ast.parse(sources.text(EXPORTS))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise SystemExit(f"{EXPORTS} has no __all__")


def main() -> None:
    """Read the flags, print the surface or what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("--revision", default="HEAD", help="of a git directory")
    parser.add_argument("--note", default="", help="where the sources came from")
    parser.add_argument("--provenance", type=Path, help="JSON: version, and each file's commit")
    parser.add_argument("--against", type=Path, help="another surface.json to compare with")
    chosen = parser.parse_args()
    provenance = Provenance.read(chosen.provenance) if chosen.provenance else None
    made = surface(Sources(chosen.sources, chosen.revision, provenance), chosen.note)
    if chosen.against is None:
        json.dump(made, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    found = differences(made["classes"], json.loads(chosen.against.read_text())["classes"])
    sys.stdout.writelines(f"{each}\n" for each in found)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
