"""A prompt as words: folded, contractions spelled out, inflections cut."""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple


def listed(text: str) -> frozenset[str]:
    """A set of words out of a text: a table that stays readable."""
    return frozenset(text.split())


# A currency or percent sign, a number (1,000  2.5  9:15), or a word (don't).
_TOKEN = re.compile(r"[£$€¥%]|\d+(?:[.,:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*")

_CONTRACTIONS = {
    "can't": "can not", "cannot": "can not", "cant": "can not", "won't": "will not",
    "wont": "will not", "shan't": "shall not", "dont": "do not", "doesnt": "does not",
    "didnt": "did not", "isnt": "is not", "arent": "are not", "wasnt": "was not",
    "werent": "were not", "havent": "have not", "hasnt": "has not", "couldnt": "could not",
    "shouldnt": "should not", "wouldnt": "would not", "ain't": "is not", "whats": "what is",
    "hows": "how is", "wheres": "where is", "whos": "who is", "im": "i am", "ive": "i have",
    "let's": "let us", "o'clock": "o'clock",
}  # fmt: skip
_ENDINGS = {
    "n't": " not",
    "'re": " are",
    "'ve": " have",
    "'ll": " will",
    "'m": " am",
    "'d": " would",
}
_ASKING = listed("what who where when how why that there here it")

# Longest first; what is left must still be a word.
_SUFFIXES = (
    "ations",
    "ation",
    "ings",
    "ing",
    "ies",
    "ied",
    "est",
    "ers",
    "er",
    "ed",
    "es",
    "ly",
    "s",
    "e",
)
_MIN_STEM = 3


class Word(NamedTuple):
    """One word or number of a prompt.

    Attributes:
        text: in lower case, accents kept.
        stem: without its inflection; equal for cancel, cancels and cancelling.
        name: written with a capital where grammar does not ask for one.
        glued: nothing stands between it and the word before, or a hyphen only.
    """

    text: str
    stem: str
    name: bool
    glued: bool


def read_words(text: str) -> list[Word]:
    """The words of a prompt, in order."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u02bc", "'")
    shouting = not any(map(str.islower, text))
    words: list[Word] = []
    end, opens = -2, True
    for match in _TOKEN.finditer(text):
        raw, between = match[0], text[max(end, 0) : match.start()]
        opens = opens or (between != " " and any(mark in between for mark in ".?!:\n"))
        name = (
            raw[0].isupper() and not shouting and not (opens and raw[1:].islower()) and raw != "I"
        )
        glued = end >= 0 and between in ("", "-")
        words.extend(_forms(raw.lower(), name, glued))
        end, opens = match.end(), False
    return words


# Prompts share most of their words; cutting suffixes is half of what reading one costs.
@lru_cache(8192)
def _forms(word: str, name: bool, glued: bool) -> tuple[Word, ...]:
    """The words that one stands for, each with its stem."""
    return tuple(Word(part, stem(part), name, glued) for part in _spell_out(word))


def _spell_out(word: str) -> list[str]:
    """don't: do, not. what's: what, is. Anna's: anna."""
    if word in _CONTRACTIONS:
        return _CONTRACTIONS[word].split()
    for ending, meaning in _ENDINGS.items():
        if word.endswith(ending):
            return (word.removesuffix(ending) + meaning).split()
    if word.endswith("'s"):
        owner = word.removesuffix("'s")
        return [owner, "is"] if owner in _ASKING else [owner]
    return [word]


def stem(word: str) -> str:
    """Cut English inflections, in the manner of Lovins and Porter but shorter.

    It need not find the true root: only the same one for forms of one word, and
    different ones for words that differ in meaning.
    """
    for suffix in _SUFFIXES:
        rest = word.removesuffix(suffix)
        if rest is not word and len(rest) >= _MIN_STEM and any(c in "aeiouy" for c in rest):
            word = rest
            break
    if word[-1:] == word[-2:-1] and len(word) > _MIN_STEM:  # cancell, stopp
        word = word[:-1]
    if len(word) >= _MIN_STEM and word.endswith("i"):  # carri from carries
        word = word[:-1] + "y"
    return word.replace("isation", "ization").replace("our", "or") if len(word) > 4 else word  # noqa: PLR2004
