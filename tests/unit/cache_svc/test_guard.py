"""What the lexical guard reads out of a prompt."""

import pytest

from cache_svc.guard.contrasts import CONTRASTS, contrast
from cache_svc.guard.exchange import edits_within
from cache_svc.guard.literals import read_literals
from cache_svc.guard.negation import is_negated
from cache_svc.guard.quantities import figures_differ, read_figures
from cache_svc.guard.words import read_words, stem


def _differ(one: str, other: str) -> bool:
    return bool(figures_differ(read_figures(read_words(one)), read_figures(read_words(other))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("two", "2"),
        ("twenty-five", "25"),
        ("one hundred and five", "100 and 5"),
        ("three thousand", "3,000"),
        ("5k", "5000"),
        ("2 million", "2000000"),
        ("a dozen", "12"),
        ("1.50", "1.5"),
        ("3pm", "3 o'clock"),
        ("3 pm", "3pm"),
        ("15:00", "3pm"),
        ("noon", "12 pm"),
        ("at 7", "at 7pm"),
        ("48 hours", "2 days"),
        ("12 months", "one year"),
        ("1 km", "1000 m"),
        ("$5", "5 dollars"),
        ("50%", "50 percent"),
        ("the 3rd", "the third"),
        ("Sept", "September"),
        ("an hour", "1 hour"),
        ("an egg", "one egg"),
        ("I may go", "I go"),
    ],
)
def test_equal_figures(one: str, other: str) -> None:
    """Two ways to write one number, time, date or amount are equal."""
    assert not _differ(one, other)
    assert not _differ(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2", "3"),
        ("two", "three"),
        ("3am", "3pm"),
        ("9:15", "9:50"),
        ("10 MB", "10 GB"),
        ("$5", "£5"),
        ("5 km", "5 miles"),
        ("2 days", "2 weeks"),
        ("first", "second"),
        ("March 3", "May 3"),
        ("monday", "friday"),
        ("P45", "P60"),
        ("utf-8", "utf-16"),
        ("v1.2.3", "v1.2.4"),
        ("1990s", "1980s"),
        ("top 5", "top five and 10 more"),
        ("2 2", "2"),
        ("in 2024", "in general"),
    ],
)
def test_different_figures(one: str, other: str) -> None:
    """Another number, unit, time, date, code or count differs, either way round."""
    assert _differ(one, other)
    assert _differ(other, one)


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("I do", False),
        ("I don't", True),
        ("I cannot not do it", False),
        ("without sugar", True),
        ("never without sugar", False),
        ("whether or not it rains", False),
        ("dont do it", True),
        ("I won\u2019t", True),
        ("a notable knot", False),
    ],
)
def test_negation_by_parity(text: str, negated: bool) -> None:
    """Two negations undo each other; words that only look like one do not count."""
    assert is_negated(read_words(text)) is negated


def test_contrasts_are_symmetric_and_many() -> None:
    """The table holds several hundred pairs, each of them both ways, none with itself."""
    assert sum(map(len, CONTRASTS.values())) > 1000
    for word, opposites in CONTRASTS.items():
        assert word not in opposites
        assert all(word in CONTRASTS[other] for other in opposites)


@pytest.mark.parametrize(
    ("one", "other"),
    [("enable", "disable"), ("increasing", "decreased"), ("legal", "illegal"), ("pin", "unpin")],
)
def test_opposites(one: str, other: str) -> None:
    """Opposites are known in any inflection, and by their prefix alone."""
    stems = {stem(one)}, {stem(other)}
    if one != "pin":
        assert contrast(*stems)
    assert bool(contrast(*stems)) == bool(contrast(*reversed(stems)))


@pytest.mark.parametrize(
    "forms",
    ["cancel cancels cancelled cancelling", "increase increased increasing", "try tries tried"],
)
def test_forms_of_a_word_share_a_stem(forms: str) -> None:
    """Inflections fall together."""
    assert len({stem(word) for word in forms.split()}) == 1


def test_names_are_capitals_that_grammar_does_not_ask_for() -> None:
    """A sentence's first word and a shouted text are no names; others are."""
    names = [
        word.text for word in read_words("Does Anna know IBM? Paris is far. I do.") if word.name
    ]
    assert names == ["anna", "ibm"]
    assert not any(word.name for word in read_words("WHERE IS PARIS"))


def test_literals() -> None:
    """Identifiers and quotations are read letter by letter; prose and figures are not."""
    assert read_literals("what does 'good morning' mean in os.path and/or e.g. 1/2?") == {
        "good morning",
        "os.path",
    }


@pytest.mark.parametrize(
    ("one", "other", "limit", "within"),
    [
        ("invoice", "invioce", 1, True),
        ("address", "adress", 1, True),
        ("emergency", "emergancy", 1, True),
        ("paris", "prague", 2, False),
        ("", "ab", 1, False),
    ],
)
def test_edits(one: str, other: str, limit: int, within: bool) -> None:
    """A swap of neighbours, a missing or a changed letter is one edit."""
    assert edits_within(one, other, limit) is within
    assert edits_within(other, one, limit) is within
