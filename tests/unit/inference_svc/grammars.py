"""Every construct that inference_svc.grammar lets through."""

GOOD_PATTERNS = (
    "yes|no",
    "[0-9]{3}-[a-z]{4}",
    r"\d+\.\d{2}",
    r"[A-Z][a-z]*( [A-Z][a-z]*)?",
    r"(?:ab|cd){1,3}e",
    r"a{0,2}b{2,}c{1}",
    r'[^\n"]{1,8}',
    r"\w+\s\W\S\D",
    r"[\d\-x.]+",
    "[a-]b",
    "...",
    r"\(\)\[\]\{\}\*\+\?\|\^\$\\",
    "käse|寿司",
)

GOOD_SCHEMAS: tuple[dict[str, object], ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
     "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}},
    {"type": "object", "additionalProperties": True},
    {"type": "object"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array"},
    {"type": "string", "minLength": 2, "maxLength": 4, "title": "t", "description": "d"},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "minimum": 0},
    {"type": "number"},
    {"type": "null"},
    {"enum": ["red", "green", 3, True, None]},
    {"const": "fixed"},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
)  # fmt: skip
