"""Accepts the grammars that are known to compile.

The engine compiles a grammar in the middle of a step, and one that does not
compile takes the whole batch down with it. So only a subset passes, of which
every construct is run on the real engine in tests/contract.
"""

import json
from typing import Any

from inference_svc.engine import Guided
from inference_svc.regex_subset import check_regex
from sidecache.errors import InvalidRequest

MAX_DEPTH = 16
MAX_NODES = 512
MAX_COUNT = 1024
_FIELD = "guided.json_schema"
_ANYWHERE = {"title", "description"}
# What each type may say besides.
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
_COUNTS = (("minItems", "maxItems"), ("minLength", "maxLength"))


def check_grammar(guided: Guided) -> None:
    """Refuse a grammar outside the subset.

    Raises:
        InvalidRequest: names the place in the grammar and what it may hold.
    """
    if guided.kind == "regex":
        check_regex(guided.grammar)
        return
    try:
        schema = json.loads(guided.grammar)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"is not JSON: {error}", field=_FIELD) from error
    _Schema().check(schema, "$", 0)


class _Schema:
    """Walks one schema and counts what it holds."""

    def __init__(self) -> None:
        self._nodes = 0

    def check(self, schema: Any, path: str, depth: int) -> None:
        """Check the schema at this path, and those inside it."""
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise _refusal(path, f"deeper than {MAX_DEPTH} or more than {MAX_NODES} schemas")
        if not isinstance(schema, dict):
            raise _refusal(path, "is not an object")
        keywords = schema.keys() - _ANYWHERE
        if keywords in ({"enum"}, {"const"}):
            _check_values(schema.get("enum", [schema.get("const")]), path)
        elif keywords == {"anyOf"}:
            self._each(schema["anyOf"], f"{path}.anyOf", depth)
        else:
            self._check_type(schema, keywords - {"type"}, path, depth)

    def _check_type(
        self, schema: dict[str, Any], keywords: set[str], path: str, depth: int
    ) -> None:
        kind = schema.get("type")
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            raise _refusal(path, f"needs enum, const, anyOf or a type of {', '.join(_KEYWORDS)}")
        if unknown := sorted(keywords - _KEYWORDS[kind]):
            known = ", ".join(sorted(_KEYWORDS[kind])) or "nothing"
            raise _refusal(path, f"{unknown[0]!r} is not supported for {kind}; {known} is")
        _check_bounds(schema, path)
        if kind == "object":
            self._check_object(schema, path, depth)
        elif kind == "array" and "items" in schema:
            self.check(schema["items"], f"{path}.items", depth + 1)

    def _check_object(self, schema: dict[str, Any], path: str, depth: int) -> None:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise _refusal(path, "properties is not an object")
        if not isinstance(required, list) or not all(name in properties for name in required):
            raise _refusal(path, "required is not a list of names among the properties")
        if not isinstance(schema.get("additionalProperties", False), bool):
            raise _refusal(path, "additionalProperties is neither true nor false")
        for name, inner in properties.items():
            self.check(inner, f"{path}.{name}", depth + 1)

    def _each(self, schemas: Any, path: str, depth: int) -> None:
        if not isinstance(schemas, list) or not schemas:
            raise _refusal(path, "is not a list of schemas")
        for index, inner in enumerate(schemas):
            self.check(inner, f"{path}[{index}]", depth + 1)


def _check_values(values: Any, path: str) -> None:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_COUNT:
        raise _refusal(path, f"enum is not a list of 1 to {MAX_COUNT} values")
    if not all(value is None or isinstance(value, str | int | bool) for value in values):
        raise _refusal(path, "only strings, integers, booleans and null can be enumerated")


def _check_bounds(schema: dict[str, Any], path: str) -> None:
    for low_name, high_name in _COUNTS:
        low, high = schema.get(low_name, 0), schema.get(high_name, MAX_COUNT)
        if not (_is_count(low) and _is_count(high) and low <= high):
            raise _refusal(path, f"{low_name} and {high_name} are not 0 to {MAX_COUNT} in order")
    bounds = [schema[name] for name in ("minimum", "maximum") if name in schema]
    if not all(isinstance(bound, int) and abs(bound) < 2**31 for bound in bounds):
        raise _refusal(path, "minimum and maximum are integers of 32 bits")
    if len(bounds) == len(("minimum", "maximum")) and bounds[0] > bounds[1]:
        raise _refusal(path, "minimum is above maximum")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _refusal(path: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"at {path[:200]}: {problem}", field=_FIELD)
