"""What a prompt quotes letter by letter: code, addresses, names of things, quotations."""

import re

# A word with punctuation inside: docs.python.org, user_id, a/b, id,name, f(x), x=1.
_IDENTIFIER = re.compile(r"[\w$]+(?:[._/:@#=\\|+<>()\[\]{},]+[\w$]+)+")
_QUOTATION = re.compile(r"[\"“„«`]([^\"”»`]{2,200})[\"”»`]|(?<!\w)'([^']{2,200})'(?!\w)")
# Found all over ordinary prose.
_ORDINARY = re.compile(r"\d+(?:[.,:/]\d+)*|[a-z]+(?:/[a-z]+)|(?:[a-z]\.)+[a-z]", re.IGNORECASE)


def read_literals(text: str) -> frozenset[str]:
    """Identifiers and quotations of a prompt, in lower case."""
    text = text.lower()
    identifiers = (m[0] for m in _IDENTIFIER.finditer(text) if not _ORDINARY.fullmatch(m[0]))
    if text.count('"') % 2:
        text = text.replace('"', " ")  # a stray mark quotes nothing
    quotations = ((m[1] or m[2]).strip(" .,!?") for m in _QUOTATION.finditer(text))
    return frozenset((*identifiers, *quotations))
