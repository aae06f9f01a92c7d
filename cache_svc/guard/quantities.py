"""The numbers of a prompt: values, units, times of day, dates and codes.

"3pm" is "3 o'clock", "two weeks" are "14 days" and "1,000" is "1000"; "3am" is
not "3pm", "10 MB" not "10 GB", and "order 48213" not "order 48231".
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cache_svc.guard.words import Word, listed

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_JOINING = listed(_TENS)
_NUMBER_WORDS = {
    **{word: value for value, word in enumerate(_SMALL.split())},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), 2)},
    "dozen": 12,
    "single": 1,
    "twice": 2,
    "thrice": 3,
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_GLUED_SCALES = {"k": 1000, "mn": 10**6, "bn": 10**9}
_ORDINAL_WORDS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_ORDINALS = {word: value for value, word in enumerate(_ORDINAL_WORDS.split(), 1)}
# Words for one that may as well be left out: "one egg", "a single egg", "an egg".
_OPTIONAL_ONES = frozenset({"one", "single", "first", "a", "an"})

# Unit: (dimension, factor to the dimension's base).
_UNITS: dict[str, tuple[str, float]] = {
    alias: (dimension, factor)
    for dimension, factor, aliases in (
        ("duration", 1, "s sec secs second seconds"),
        ("duration", 60, "min mins minute minutes"),
        ("duration", 3600, "h hr hrs hour hours"),
        ("duration", 86400, "day days"),
        ("duration", 604800, "week weeks wk wks fortnight"),
        ("months", 1, "month months"),
        ("months", 12, "year years yr yrs"),
        ("length", 0.001, "mm millimetre millimetres millimeter millimeters"),
        ("length", 0.01, "cm centimetre centimetres centimeter centimeters"),
        ("length", 1, "m metre metres meter meters"),
        ("length", 1000, "km kilometre kilometres kilometer kilometers"),
        ("miles", 1, "mile miles mi"),
        ("feet", 1, "ft foot feet"),
        ("inches", 1, "inch inches"),
        ("mass", 0.001, "mg milligram milligrams"),
        ("mass", 1, "g gram grams"),
        ("mass", 1000, "kg kgs kilo kilos kilogram kilograms"),
        ("ounces", 1, "oz ounce ounces"),
        ("pound", 1, "lb lbs £ gbp pound pounds quid"),
        ("usd", 1, "$ usd dollar dollars bucks"),
        ("eur", 1, "€ eur euro euros"),
        ("jpy", 1, "¥ jpy yen"),
        ("volume", 1, "l litre litres liter liters"),
        ("volume", 0.001, "ml millilitre millilitres milliliter milliliters"),
        ("data", 1, "kb kilobyte kilobytes"),
        ("data", 1e3, "mb megabyte megabytes"),
        ("data", 1e6, "gb gig gigs gigabyte gigabytes"),
        ("data", 1e9, "tb terabyte terabytes"),
        ("energy", 1, "kwh"),
        ("percent", 1, "% percent pct"),
    )
    for alias in aliases.split()
}
_CURRENCY_SIGNS = frozenset("£$€¥")

_CALENDAR = {
    alias: aliases.split()[0]
    for aliases in (
        "january jan", "february feb", "march", "april apr", "may", "june jun", "july jul",
        "august aug", "september sep sept", "october oct", "november nov", "december dec",
        "monday mon", "tuesday tue tues", "wednesday wed weds", "thursday thu thur thurs",
        "friday fri", "saturday", "sunday",
    )
    for alias in aliases.split()
}  # fmt: skip
# Months only where nothing else can be meant.
_ALSO_VERBS = frozenset({"march", "may"})
_MERIDIEMS = {"am": "am", "pm": "pm"}
_ORDINAL_ENDINGS = frozenset({"st", "nd", "rd", "th"})
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_PLAIN = re.compile(r"\d+(\.\d+)?")
# Prompts are short; a table of figures is compared as it is written.
_MAX_COMPARED = 32


_NOONS = frozenset({"noon", "midnight", "midday"})
# A prompt without any of these, and without digits, has nothing to count.
_COUNTING = frozenset().union(_NUMBER_WORDS, _SCALES, _ORDINALS, _UNITS, _CALENDAR, _NOONS)


class Quantity(NamedTuple):
    """One number of a prompt.

    Attributes:
        value: as written, its scale applied.
        dimension: what it counts, or "" when nothing says so.
        base: the value in the dimension's base unit; minutes on a 12-hour dial for
            a time of day.
        meridiem: am, pm or "" for a time of day.
        optional: a one that may as well be left out.
    """

    value: float
    dimension: str = ""
    base: float = 0.0
    meridiem: str = ""
    optional: bool = False


class Figures(NamedTuple):
    """Everything countable in a prompt.

    Attributes:
        codes: P60, v2.1.3, march, monday.
        spent: positions of the words that were read as numbers and their units.
    """

    quantities: tuple[Quantity, ...]
    codes: frozenset[str]
    spent: frozenset[int]


_NO_FIGURES = Figures((), frozenset(), frozenset())


def read_figures(words: Sequence[Word]) -> Figures:
    """The numbers and codes among the words of a prompt."""
    if _COUNTING.isdisjoint([word.text for word in words]) and not any(
        word.text[0].isdigit() for word in words
    ):
        return _NO_FIGURES
    return _Reader(words).read()


def figures_differ(one: Figures, other: Figures) -> str:
    """What differs between the numbers of two prompts, or ""."""
    if one.codes != other.codes:
        return f"only one says {', '.join(sorted(one.codes ^ other.codes))}"
    if max(len(one.quantities), len(other.quantities)) > _MAX_COMPARED:
        return "" if one.quantities == other.quantities else "the figures differ"
    left = list(other.quantities)
    unmatched = []
    # The definite ones choose first, or an "a" could take the place of a "1".
    for quantity in sorted(one.quantities, key=lambda q: q.optional):
        match = next((q for q in left if _same(quantity, q)), None)
        if match is not None:
            left.remove(match)
        else:
            unmatched.append(quantity)
    extra = [q for q in (*unmatched, *left) if not q.optional]
    return f"only one says {', '.join(f'{q.value:g}' for q in extra)}" if extra else ""


def _same(one: Quantity, other: Quantity) -> bool:
    if "clock" in (one.dimension, other.dimension):
        return _same_time(one, other)
    if one.dimension and other.dimension:
        return one.dimension == other.dimension and math.isclose(one.base, other.base)
    return math.isclose(one.value, other.value)


def _same_time(one: Quantity, other: Quantity) -> bool:
    if one.dimension == other.dimension:
        vague = not (one.meridiem and other.meridiem)
        return one.base == other.base and (vague or one.meridiem == other.meridiem)
    # "a table at 7" may mean 7pm; "7 days" may not.
    return not (one.dimension and other.dimension) and math.isclose(one.value, other.value)


class _Reader:
    """Walks the words of one prompt once."""

    def __init__(self, words: Sequence[Word]) -> None:
        self._words = words
        self._codes: set[str] = set()
        self._spent: set[int] = set()

    def read(self) -> Figures:
        quantities = tuple(self._quantities())
        return Figures(quantities, frozenset(self._codes), frozenset(self._spent))

    def _quantities(self) -> Iterator[Quantity]:
        at = 0
        while at < len(self._words):
            word, start = self._words[at].text, at
            if word[0].isdigit():
                quantity, at = self._digits(at)
            elif word in _NUMBER_WORDS or word in _SCALES:
                value, optional, at = self._spelled(at)
                quantity, at = self._with_unit(value, at, optional=optional)
            else:
                quantity = self._other(word, at)
                at += 1
            if quantity is not None:
                self._spent.update(range(start, at))
                yield quantity

    def _other(self, word: str, at: int) -> Quantity | None:
        """An ordinal, "an hour" or noon; notes names of months and days."""
        unit = self._text(at + 1)
        if word in _ORDINALS:
            value = _ORDINALS[word]
            return Quantity(value, "ordinal", value, optional=word in _OPTIONAL_ONES)
        if word in {"a", "an", "per"} and unit in _UNITS:
            self._spent.add(at + 1)
            dimension, factor = _UNITS[unit]
            return Quantity(1, dimension, factor, optional=True)
        if word in _NOONS:
            return Quantity(12, "clock", 0, "am" if word == "midnight" else "pm")
        if word in _CALENDAR and (word not in _ALSO_VERBS or self._is_month(at)):
            self._codes.add(_CALENDAR[word])
        return None

    def _is_month(self, at: int) -> bool:
        """Whether march or may is the month: written as a name, or beside a number."""
        beside = self._text(at - 1)[:1] + self._text(at + 1)[:1]
        return self._words[at].name or any(map(str.isdigit, beside))

    def _digits(self, at: int) -> tuple[Quantity | None, int]:
        """A number in digits at ``at``; returns it and where to go on."""
        text, before = self._words[at].text, self._text(at - 1)
        if clock := _CLOCK.fullmatch(text):
            return self._clock(int(clock[1]), int(clock[2]), at + 1)
        number = text.replace(",", "") if _GROUPED.fullmatch(text) else text
        glued_to_name = self._words[at].glued and before.isalpha() and before not in _UNITS
        if glued_to_name or not _PLAIN.fullmatch(number):
            self._codes.add((before if glued_to_name else "") + text)
            return None, at + 1
        return self._after_digits(float(number), text, at + 1)

    def _after_digits(self, value: float, text: str, at: int) -> tuple[Quantity | None, int]:
        following = self._text(at)
        if following in _MERIDIEMS or following == "o'clock":
            return self._clock(int(value), 0, at)
        if self._glued(at):
            if following in _GLUED_SCALES:
                return self._with_unit(value * _GLUED_SCALES[following], at + 1)
            if following in _ORDINAL_ENDINGS:
                return Quantity(value, "ordinal", value), at + 1
            if following not in _UNITS and following not in _SCALES and following.isalpha():
                self._codes.add(text + following)  # 1990s, 2fa, 4k
                return None, at + 1
        while self._text(at) in _SCALES:
            value *= _SCALES[self._text(at)]
            at += 1
        return self._with_unit(value, at)

    def _clock(self, hour: int, minute: int, at: int) -> tuple[Quantity, int]:
        meridiem = _MERIDIEMS.get(self._text(at), "")
        if meridiem or self._text(at) == "o'clock":
            at += 1
        if hour > 12:  # noqa: PLR2004  # a 24-hour clock says so itself
            meridiem = "pm"
        return Quantity(hour % 12 or 12, "clock", hour % 12 * 60 + minute, meridiem), at

    def _spelled(self, at: int) -> tuple[float, bool, int]:
        """A number in words: value, whether it may be left out, and where to go on."""
        value, optional, start = 0.0, self._text(at) in _OPTIONAL_ONES, at
        while True:
            word = self._text(at)
            if word in _SCALES:
                value = (value or 1) * _SCALES[word]
            elif word in _NUMBER_WORDS and (at == start or self._joins(at)):
                value += _NUMBER_WORDS[word]
            else:
                return value, optional and at == start + 1, at
            at += 1

    def _joins(self, at: int) -> bool:
        """Whether a number word continues the one before: twenty five, hundred ten."""
        before = self._text(at - 1)
        return before in _JOINING or before in _SCALES

    def _with_unit(self, value: float, at: int, *, optional: bool = False) -> tuple[Quantity, int]:
        """The value with the unit that follows it, or the currency sign before it."""
        unit = self._text(at)
        if unit in _MERIDIEMS or unit == "o'clock":
            return self._clock(int(value), 0, at)
        if unit in _UNITS:
            dimension, factor = _UNITS[unit]
            return Quantity(value, dimension, value * factor, optional=optional), at + 1
        for before in (self._text(at - 2), self._text(at - 3)):
            if before in _CURRENCY_SIGNS:
                return Quantity(value, _UNITS[before][0], value), at
        return Quantity(value, optional=optional), at

    def _text(self, at: int) -> str:
        return self._words[at].text if 0 <= at < len(self._words) else ""

    def _glued(self, at: int) -> bool:
        return at < len(self._words) and self._words[at].glued
