r"""The regular expressions that a guided answer may be asked to match.

Literals, ``.``, classes, ``\d \w \s`` and their opposites, groups,
alternation and greedy repetition; no anchors (the whole answer matches),
look-around, back-references or lazy repetition.
"""

from sidecache.errors import InvalidRequest

MAX_DEPTH = 16
MAX_REPEATS = 256
# Copies of an atom once all the repetitions around it are written out.
MAX_COPIES = 4096
_FIELD = "guided.regex"
_CLASSES = "dDwWsS"
_CONTROLS = "nrt"
_SPECIAL = "\\.[]{}()*+?|^$/-"


def check_regex(pattern: str) -> None:
    """Refuse what is outside the subset.

    Raises:
        InvalidRequest: names the place and what was found there.
    """
    _Parser(pattern).parse()


class _Parser:
    """Recursive descent, keeping nothing but the place and the number of copies."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def parse(self) -> None:
        copies = self._alternation(0)
        if self._at < len(self._pattern):
            raise self._refusal("is not opened")
        if copies > MAX_COPIES:
            raise InvalidRequest(
                f"repeats too much: {copies} copies, at most {MAX_COPIES}", field=_FIELD
            )

    def _alternation(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise self._refusal(f"is nested deeper than {MAX_DEPTH}")
        copies = self._sequence(depth)
        while self._take("|"):
            copies += self._sequence(depth)
        return copies

    def _sequence(self, depth: int) -> int:
        copies = 0
        begin = self._at
        while self._peek() not in ("", "|", ")"):
            copies += self._atom(depth) * self._repetition()
        if self._at == begin:
            raise self._refusal("stands where at least one character is needed")
        return copies

    def _atom(self, depth: int) -> int:
        if self._take("("):
            if self._take("?") and not self._take(":"):
                raise self._refusal("after (? is not supported; only (?: is")
            copies = self._alternation(depth + 1)
            self._expect(")")
            return copies
        if self._take("["):
            self._class()
        elif self._take("\\"):
            self._escape()
        elif self._peek() in "*+?{}]^$":
            raise self._refusal("is not supported here; escape it if it is meant literally")
        else:
            self._at += 1
        return 1

    def _class(self) -> None:
        self._take("^")
        begin = self._at
        while not self._take("]"):
            low = self._member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or low > high:
                    raise self._refusal("follows a range that is not in order")
        if self._at - 1 == begin:
            raise self._refusal("follows an empty class")

    def _member(self) -> str:
        """One member of a class: a character, or a two-letter name for several."""
        if self._take("\\"):
            return self._escape()
        member = self._peek()
        if member in ("", "[", "-") and not (member == "-" and self._closes_next()):
            raise self._refusal("is not supported in a class; escape it")
        self._at += 1
        return member

    def _closes_next(self) -> bool:
        return self._pattern[self._at + 1 : self._at + 2] == "]"

    def _escape(self) -> str:
        escaped = self._peek()
        if escaped == "" or escaped not in _CLASSES + _CONTROLS + _SPECIAL:
            raise self._refusal("is not a supported escape")
        self._at += 1
        return escaped if escaped in _SPECIAL else "\\" + escaped

    def _repetition(self) -> int:
        """How many copies of an atom its quantifier asks for at most."""
        copies = 1
        if self._peek() in ("*", "+", "?"):
            self._at += 1
        elif self._take("{"):
            copies = self._counts()
        else:
            return 1
        if self._peek() in ("*", "+", "?", "{"):
            raise self._refusal("after a repetition is not supported")
        return copies

    def _counts(self) -> int:
        low = high = self._number()
        if self._take(","):
            high = low if self._peek() == "}" else self._number()
        self._expect("}")
        if low > high:
            raise self._refusal(f"follows the counts {low} and {high}, which are not in order")
        return max(high, 1)

    def _number(self) -> int:
        begin = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        digits = self._pattern[begin : self._at]
        # Counted by length first: a number of a million digits is slow to read.
        if not digits or len(digits) > len(str(MAX_REPEATS)) or int(digits) > MAX_REPEATS:
            raise self._refusal(f"follows {digits or 'no number'}; a count is 0 to {MAX_REPEATS}")
        return int(digits)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise self._refusal(f"stands where {character!r} is needed")

    def _refusal(self, problem: str) -> InvalidRequest:
        found = repr(self._peek()) if self._peek() else "the end"
        return InvalidRequest(f"at character {self._at}: {found} {problem}", field=_FIELD)
