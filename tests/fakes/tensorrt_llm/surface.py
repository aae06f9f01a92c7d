"""Makes classes that take exactly the arguments the real API takes.

An unknown argument or a value of another type is refused as the real class would refuse
it or harder: a function or dataclass with TypeError, a pydantic model (whose base forbids
extra fields) with ValueError, as pydantic's own error is one.
"""

import ast
import enum
import json
import operator
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("surface.json")
_CONTAINERS: dict[str, type | tuple[type, ...]] = {
    "List": list,
    "list": list,
    "Set": set,
    "Sequence": (list, tuple),
}
_PLAIN: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "Path": Path,
    "bool": bool,
    "dict": dict,
    "timedelta": timedelta,
    "None": type(None),
}
# Constraints that the annotation's name stands for.
_BOUNDS: dict[str, tuple[str, float]] = {
    "PositiveInt": ("int", 1),
    "NonNegativeInt": ("int", 0),
    "NonNegativeFloat": ("float", 0),
}


@cache
def read_surface() -> dict[str, Any]:
    """What the generator wrote."""
    read: dict[str, Any] = json.loads(_FILE.read_text())
    return read


class Surface:
    """The classes of one version.

    Args:
        without: ``Class.field`` or ``Class.method(argument)`` that another version lacks.
        renamed: ``Class.field`` to what another version calls it.
    """

    def __init__(
        self,
        without: frozenset[str] = frozenset(),
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.document = read_surface()
        self._without = without
        self._renamed = renamed or {}
        self._classes: dict[str, type] = {}

    @property
    def exports(self) -> list[str]:
        """What tensorrt_llm.llmapi offers."""
        names: list[str] = self.document["exports"]
        return [name for name in names if name not in self._without]

    def entry(self, name: str) -> dict[str, Any]:
        """A class with everything it inherits."""
        own = self.document["classes"][name]
        merged: dict[str, Any] = {"fields": {}, "methods": {}, "properties": [], "attributes": []}
        for base in own["bases"]:
            if base in self.document["classes"]:
                inherited = self.entry(base)
                for part, value in inherited.items():
                    if part in merged:
                        merged[part] = (
                            merged[part] | value
                            if part in {"fields", "methods"}
                            else [
                                *merged[part],
                                *value,
                            ]
                        )
        fields = merged["fields"] | own.get("fields", {})
        missing = {each.partition(".")[2] for each in self._without if each.startswith(f"{name}.")}
        return {
            **own,
            "fields": dict(
                self._other_name(name, key, value)
                for key, value in fields.items()
                if key not in missing
            ),
            "methods": merged["methods"] | own.get("methods", {}),
            "properties": [*merged["properties"], *own.get("properties", [])],
            "attributes": [*merged["attributes"], *own.get("attributes", [])],
        }

    def _other_name(
        self, owner: str, field: str, described: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """A field as it is called here; what was renamed has no second name."""
        other = self._renamed.get(f"{owner}.{field}")
        if other is None:
            return field, described
        return other, {key: value for key, value in described.items() if key != "aliases"}

    def arguments(self, owner: str, method: str) -> dict[str, Any]:
        """The arguments of a method, in their order."""
        prefix = f"{owner}.{method}("
        missing = {each[len(prefix) : -1] for each in self._without if each.startswith(prefix)}
        found = self.entry(owner)["methods"][method]
        return {name: value for name, value in found.items() if name not in missing}

    def make(self, name: str, validate: Callable[[Any], None] | None = None) -> type:
        """The class of this name; the same one each time.

        Args:
            validate: what the real class checks beyond types.
        """
        if name not in self._classes:
            entry = self.entry(name)
            if entry["kind"] == "enum":
                functional: Any = enum.StrEnum  # called with names, as mypy cannot follow
                self._classes[name] = functional(name, entry["members"])
            else:
                self._classes[name] = self._make_record(name, entry, validate)
        return self._classes[name]

    def check_call(self, owner: str, method: str, given: Mapping[str, Any]) -> None:
        """Refuse a call that the real method would not take.

        Raises:
            TypeError: names the argument.
        """
        known = self.arguments(owner, method)
        for argument, value in given.items():
            if argument not in known:
                raise TypeError(f"{owner}.{method}() got an unexpected argument {argument!r}")
            self._check(f"{owner}.{method}({argument})", known[argument]["type"], value, TypeError)
        for argument, described in known.items():
            if "default" not in described and argument not in given and argument != "**":
                raise TypeError(f"{owner}.{method}() is missing {argument!r}")

    def _make_record(
        self, name: str, entry: dict[str, Any], validate: Callable[[Any], None] | None
    ) -> type:
        error = ValueError if entry["kind"] == "pydantic" else TypeError
        positional = entry["kind"] == "dataclass" and not entry["kw_only"]
        fields: dict[str, Any] = entry["fields"]
        aliases = {each: field for field in fields for each in fields[field].get("aliases", ())}

        def __init__(record: Any, *values: Any, **given: Any) -> None:  # noqa: N807
            if values and not positional:
                raise TypeError(f"{name} takes keyword arguments only")
            given = dict(zip(fields, values, strict=False)) | given
            given = {aliases.get(field, field): value for field, value in given.items()}
            for field, value in given.items():
                if field not in fields:
                    raise error(f"{name}: {field} is no field of it")
                self._check(f"{name}.{field}", fields[field]["type"], value, error)
                _check_bounds(f"{name}.{field}", fields[field], value, error)
            for field, described in fields.items():
                if described.get("required") and field not in given:
                    raise error(f"{name}: {field} is required")
                object.__setattr__(record, field, given.get(field, self._default(described)))
            if validate is not None:
                validate(record)

        made = type(name, (), {"__init__": __init__})
        if entry["kind"] == "pydantic":
            made.model_fields = dict(fields)  # type: ignore[attr-defined]
        return made

    def _default(self, described: dict[str, Any]) -> Any:
        text = described.get("default", "None")
        if text == "factory":
            inner = described["type"]
            if inner in self.document["classes"]:
                return self.make(inner)()
            return {} if inner.startswith(("Dict", "dict")) else []
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a name, in Python or in C++
            owner, _, member = text.rpartition(".")
            if owner in self.document["classes"]:
                return self.make(owner)[member]  # type: ignore[index]
            return None

    def _check(self, where: str, annotation: str, value: Any, error: type[Exception]) -> None:
        if not self._fits(ast.parse(annotation, mode="eval").body, value):
            raise error(f"{where} is {value!r} of type {type(value).__name__}, not {annotation}")

    def _fits(self, node: ast.expr, value: Any) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._fits(ast.parse(node.value, mode="eval").body, value)
        if isinstance(node, ast.Constant):
            return value is node.value
        if isinstance(node, ast.BinOp):
            return self._fits(node.left, value) or self._fits(node.right, value)
        if isinstance(node, ast.Subscript):
            return self._fits_generic(node, value)
        return self._fits_name(ast.unparse(node), value)

    def _fits_generic(self, node: ast.Subscript, value: Any) -> bool:
        name = ast.unparse(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Optional":
            return value is None or self._fits(parts[0], value)
        if name == "Union":
            return any(self._fits(part, value) for part in parts)
        if name == "Literal":
            return value in [ast.literal_eval(part) for part in parts]
        if name in {"Dict", "dict", "Mapping"}:
            return isinstance(value, Mapping) and all(
                self._fits(parts[0], key) and self._fits(parts[1], each)
                for key, each in value.items()
            )
        if not isinstance(value, _CONTAINERS[name]):
            return False
        items: Any = value
        return all(self._fits(parts[0], each) for each in items)

    def _fits_name(self, name: str, value: Any) -> bool:
        if name in _BOUNDS:
            plain, least = _BOUNDS[name]
            return _fits_plain(plain, value) and value >= least
        if name in _PLAIN or name in _SPECIAL:
            return _fits_plain(name, value)
        if name in self.document["classes"]:
            entry = self.document["classes"][name]
            # pydantic makes a member of its value; a plain function does not.
            as_value = entry["kind"] == "enum" and value in entry["members"].values()
            return isinstance(value, self.make(name)) or as_value
        return False  # a type this project never passes


def _fits_plain(name: str, value: Any) -> bool:
    if name in _PLAIN:
        # In Python a bool is an int; in none of these signatures is it meant.
        is_bool = isinstance(value, bool)
        return isinstance(value, _PLAIN[name]) and (name == "bool" or not is_bool)
    return _SPECIAL[name](value)


def _is_prompt(value: Any) -> bool:
    """A str, a list of ids, or a dict with one of the two (tensorrt_llm/inputs/data.py)."""
    if isinstance(value, dict):
        ids = value.get("prompt_token_ids")
        return set(value) <= {"prompt", "prompt_token_ids"} and _are_ids(ids)
    return isinstance(value, str) or _are_ids(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _check_bounds(
    where: str, described: dict[str, Any], value: Any, error: type[Exception]
) -> None:
    if value is None:
        return
    for bound, (holds, words) in _LIMITS.items():
        if bound in described and not holds(value, described[bound]):
            raise error(f"{where} is {value}, must be {words} {described[bound]}")


_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}

# Types that say more, or less, than a class.
_SPECIAL: dict[str, Callable[[Any], bool]] = {
    "Any": lambda _: True,
    "object": lambda _: True,
    "PromptInputs": _is_prompt,
    "SpeculativeConfig": lambda value: type(value).__name__.endswith("DecodingConfig"),
}
