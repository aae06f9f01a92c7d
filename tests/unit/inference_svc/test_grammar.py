"""Only grammars that are known to compile reach the engine."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.engine import Guided
from inference_svc.grammar import check_grammar
from sidecache.errors import InvalidRequest
from tests.unit.inference_svc.grammars import GOOD_PATTERNS, GOOD_SCHEMAS


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_a_plain_pattern_passes(pattern: str) -> None:
    """Every construct of the subset is accepted."""
    check_grammar(Guided("regex", pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a|", "(", "a)", "(a", "[", "[]", "[^]", "[z-a]", "[a", "a{", "a{2", "a{3,2}", "a{999}",
        "a**", "a+?", "*a", "^a", "a$", "(?=a)b", "(?P<n>a)", r"(a)\1", r"\b", r"\x41", "\\",
        "(a{200}){200}", "(" * 40 + "a" + ")" * 40, "a{" + "9" * 5000 + "}", "[[:alpha:]]", "()",
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_place(pattern: str) -> None:
    """A pattern outside the subset is an InvalidRequest that names the field."""
    with pytest.raises(InvalidRequest) as refused:
        check_grammar(Guided("regex", pattern))
    assert refused.value.field == "guided.regex"


@given(st.text("ab()[]{}|*+?^$-\\d1,.:", max_size=20))
def test_no_pattern_breaks_the_check(pattern: str) -> None:
    """Any text is accepted or refused, and what is accepted is a Python regex too."""
    try:
        check_grammar(Guided("regex", pattern))
    except InvalidRequest:
        return
    re.compile(pattern)


@pytest.mark.parametrize("schema", GOOD_SCHEMAS)
def test_a_plain_schema_passes(schema: object) -> None:
    """Every construct of the subset is accepted."""
    check_grammar(Guided("json_schema", json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        1, [], {}, {"type": "objec"}, {"type": ["string", "null"]}, {"$ref": "#/nope"},
        {"type": "string", "pattern": "a"}, {"type": "object", "properties": []},
        {"type": "object", "required": ["a"]}, {"type": "array", "items": 3},
        {"type": "string", "minLength": 3, "maxLength": 2}, {"type": "string", "maxLength": 10**9},
        {"type": "integer", "minimum": 5, "maximum": 1}, {"enum": []}, {"enum": [{}]},
        {"anyOf": []}, {"anyOf": [{"type": "x"}]}, {"type": "object", "additionalProperties": {}},
        {"type": "integer", "minimum": 0.5}, {"type": "string", "minLength": True},
    ],
)  # fmt: skip
def test_any_other_schema_is_refused_by_place(schema: object) -> None:
    """A schema outside the subset is an InvalidRequest that names the field."""
    with pytest.raises(InvalidRequest) as refused:
        check_grammar(Guided("json_schema", json.dumps(schema)))
    assert refused.value.field == "guided.json_schema"


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    """Broken and bottomless JSON is an InvalidRequest, not a crash."""
    with pytest.raises(InvalidRequest, match="JSON"):
        check_grammar(Guided("json_schema", text))


def test_a_deep_schema_is_refused() -> None:
    """Nesting has a limit."""
    schema: dict[str, object] = {"type": "string"}
    for _ in range(20):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequest, match="deeper"):
        check_grammar(Guided("json_schema", json.dumps(schema)))
