"""What a prompt quotes letter by letter: code, addresses, names of things, quotations."""

import re

# A word with punctuation inside: docs.python.org, user_id, a/b, id,name, f(x), x=1.
_IDENTIFIER = re.compile(r"[\w$]+(?:[._/:@#=\\|+<>()\[\]{},]+[\w$]+)+")
_QUOTATION = re.compile(r"[\"“„«`]([^\"”»`]{2,200})[\"”»`]|(?<!\w)'([^']{2,200})'(?!\w)")
# Most prompts have neither, which a look for these tells sooner.
_JOINED = re.compile(r"[._/:@#=\\|+<>()\[\]{},][\w$]")
_QUOTED = re.compile(r"[\"“„«`']")
# Found all over ordinary prose.
_NONE: frozenset[str] = frozenset()
_ORDINARY = re.compile(r"\d+(?:[.,:/]\d+)*|[a-z]+(?:/[a-z]+)|(?:[a-z]\.)+[a-z]", re.IGNORECASE)


def read_literals(text: str) -> frozenset[str]:
    """Identifiers and quotations of a prompt, in lower case."""
    text = text.lower()
    return _identifiers(text) | _quotations(text)


def _identifiers(text: str) -> frozenset[str]:
    if not _JOINED.search(text):
        return _NONE
    found = (m[0] for m in _IDENTIFIER.finditer(text))
    return frozenset(word for word in found if not _ORDINARY.fullmatch(word))


def _quotations(text: str) -> frozenset[str]:
    if not _QUOTED.search(text):
        return _NONE
    if text.count('"') % 2:
        text = text.replace('"', " ")  # a stray mark quotes nothing
    return frozenset((m[1] or m[2]).strip(" .,!?") for m in _QUOTATION.finditer(text))
