"""Token ids of the parts of prompts between special tokens, kept for the next prompt."""

import json
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b, sha256
from typing import Any

from tokenizers import Tokenizer

# Shorter parts are tokenized faster than they are found again.
MIN_CHARACTERS = 64
# A long part is cut again at a line's end after so many characters.
LINES_CHARACTERS = 256
# A line's end alone, between two printable characters of ASCII.
_LINE_END = re.compile(r"(?<=[!-~])\n(?=[!-~])")
# Ways of cutting text into words that always cut after such a line's end, and that
# look no further ahead than the next character: GPT-2's, Llama 3's and Qwen 2's.
_WORDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
LINE_CUTTING_PATTERNS = (
    _WORDS + "\\p{N}{1,3}" + _REST,
    _WORDS + "\\p{N}" + _REST,
)
_OVERHEAD_BYTES = 200


class SegmentCache:
    """Tokenizes texts part by part and remembers the parts, by a hash of them.

    A tokenizer takes out its added tokens first and treats what lies between them
    each by itself. That makes a part's ids independent of what is around it, if no
    added token reaches beyond itself (``lstrip``, ``rstrip``, ``single_word``) or is
    looked for in normalized text, and nothing treats a text's beginning in its own
    way. Where that does not hold, whole texts are tokenized and nothing is kept.
    Long parts are cut again at ends of lines, where the tokenizer is known to cut too;
    so a text that grows at its end is found again as well.

    Args:
        max_bytes: of kept ids and their bookkeeping; 0: none are kept.
    """

    def __init__(self, tokenizer: Tokenizer, max_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        described = json.loads(tokenizer.to_str())
        self._cut = _cutter(described) if max_bytes else None
        self._cuts_lines = _cuts_lines(described.get("pre_tokenizer"))
        self._kept: OrderedDict[bytes, array[int]] = OrderedDict()
        self._bytes = 0
        # Prompts are tokenized on several threads.
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes kept now."""
        return self._bytes

    def encode(self, text: str, salt: str) -> Sequence[int]:
        """The ids of a text; parts are found again under the same salt only."""
        if self._cut is None or len(text) < MIN_CHARACTERS:
            return self._plain(text)
        ids = array("I")
        key = sha256(salt.encode()).digest()
        for part in self._parts(self._cut, text):
            ids.extend(self._part(part, key) if len(part) >= MIN_CHARACTERS else self._plain(part))
        return ids

    def _parts(self, cut: re.Pattern[str], text: str) -> Iterator[str]:
        """Each special token with what follows it, up to the next one."""
        start = 0
        for found in cut.finditer(text):
            if found.start() > start:
                yield from self._lines(text[start : found.start()])
            start = found.start()
        yield from self._lines(text[start:])

    def _lines(self, part: str) -> Iterator[str]:
        """A part in groups of lines, the same ones while it grows at its end."""
        start = 0
        if self._cuts_lines:
            while found := _LINE_END.search(part, start + LINES_CHARACTERS):
                yield part[start : found.end()]
                start = found.end()
        yield part[start:]

    def _part(self, part: str, key: bytes) -> "array[int]":
        name = blake2b(part.encode(), digest_size=16, key=key).digest()
        with self._lock:
            ids = self._kept.get(name)
            if ids is not None:
                self._kept.move_to_end(name)
                return ids
        ids = array("I", self._plain(part))
        self._keep(name, ids)
        return ids

    def _keep(self, name: bytes, ids: "array[int]") -> None:
        size = 4 * len(ids) + _OVERHEAD_BYTES
        with self._lock:
            if size > self._max_bytes or name in self._kept:
                return
            self._kept[name] = ids
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= 4 * len(gone) + _OVERHEAD_BYTES

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _cutter(described: dict[str, Any]) -> re.Pattern[str] | None:
    """Finds the tokens that a text is cut at; None: parts would not be independent."""
    added = described.get("added_tokens") or []
    reaching = ("lstrip", "rstrip", "single_word", "normalized")
    if not added or any(token.get(flag) for token in added for flag in reaching):
        return None
    if described.get("normalizer") is not None or _minds_the_beginning(described):
        return None
    # The longest first, as the library does where one token begins another.
    contents = sorted((token["content"] for token in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents)))


def _cuts_lines(splitter: dict[str, Any] | None) -> bool:
    """Whether words never reach over a line's end into the next line."""
    steps = (splitter or {}).get("pretokenizers", [splitter] if splitter else [])
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and set(kinds[:-1]) <= {"Digits"}:
        return bool(steps[-1].get("use_regex"))
    if kinds != ["Split", "ByteLevel"] or steps[1].get("use_regex"):
        return False
    pattern = steps[0].get("pattern", {}).get("Regex")
    is_plain = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    return is_plain and pattern in LINE_CUTTING_PATTERNS


def _minds_the_beginning(described: dict[str, Any]) -> bool:
    """Whether anything is done to a text's beginning alone, such as a space put before it."""
    splitter = json.dumps(described.get("pre_tokenizer"))
    return any(
        sign in splitter for sign in ('"add_prefix_space": true', '"prepend_scheme"', "Metaspace")
    )
