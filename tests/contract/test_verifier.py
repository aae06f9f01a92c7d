"""What every PairVerifier promises, and which look-alikes each must tell apart."""

import time
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.lexical_guard import LexicalGuard
from cache_svc.verifier import ACCEPTED, Look, PairVerifier, Verdict
from sidecache import weights
from tests.contract.verifier_pairs import PARAPHRASES, TRAPS

_OPEN: dict[str, Callable[[], PairVerifier]] = {"rules": LexicalGuard, "learned": LearnedVerifier}


@cache
def _verifier(name: str) -> PairVerifier:
    weights.pull("minilm-l6-v2-int8")
    return _OPEN[name]()


LOOK_ALIKES = [
    # numbers, times, dates, units
    ("Remind me at 7am", "Remind me at 7pm"),
    ("What is 15% of 200?", "What is 15% of 2000?"),
    ("Track parcel 91822", "Track parcel 91282"),
    ("A recipe for two people", "A recipe for four people"),
    ("Is 10 MB enough?", "Is 10 GB enough?"),
    ("How far is 5 km?", "How far is 5 miles?"),
    ("What happened on March 3?", "What happened on May 3?"),
    ("Are you open on Monday?", "Are you open on Tuesday?"),
    ("Release notes of v2.1", "Release notes of v2.2"),
    ("Explain GPT-3", "Explain GPT-4"),
    ("Rooms for 2 adults and 3 children", "Rooms for 3 adults and 3 children"),
    ("What was decided in the first meeting?", "What was decided in the third meeting?"),
    # negation
    ("How do I cancel my subscription?", "How do I not cancel my subscription?"),
    ("Cancel my subscription", "Don't cancel my subscription"),
    ("Which foods contain gluten?", "Which foods don't contain gluten?"),
    ("Can I travel with a visa?", "Can I travel without a visa?"),
    ("Meals with nuts", "Meals with no nuts"),
    # opposites
    ("How do I enable dark mode?", "How do I disable dark mode?"),
    ("Turn on the heating", "Turn off the heating"),
    ("Why did prices increase?", "Why did prices decrease?"),
    ("Sort the list in ascending order", "Sort the list in descending order"),
    ("Is it legal to fish here?", "Is it illegal to fish here?"),
    ("How do I lock my screen?", "How do I unlock my screen?"),
    ("What should I do before surgery?", "What should I do after surgery?"),
    # direction
    ("Translate from English to Welsh", "Translate from Welsh to English"),
    ("Flights from Oslo to Bergen", "Flights from Bergen to Oslo"),
    ("Does Tom owe money to Anna?", "Does Anna owe money to Tom?"),
    # names and exchanged words
    ("What is the capital of France?", "What is the capital of Spain?"),
    ("Who wrote Hamlet?", "Who wrote Macbeth?"),
    ("Does the hotel have a sauna?", "Does the hotel have a garage?"),
    ("How do I reset my password?", "How do I reset my colleague's password?"),
    ("What does `sorted` return?", "What does `reversed` return?"),
    ("Explain os.path.join", "Explain os.path.split"),
]

SAME_MEANING = [
    ("What is the capital of France?", "What's the capital city of France?"),
    ("What is the capital of France?", "what is the capital of france"),
    ("How do I cancel my subscription?", "How can I cancel my subscription please?"),
    ("Can you meet at 3pm?", "Can you meet at 3 o'clock?"),
    ("Is it open for 2 weeks?", "Is it open for 14 days?"),
    ("A loan of 1,000 dollars", "A loan of $1000"),
    ("How many are in a dozen eggs?", "How many are in 12 eggs?"),
    ("How do I boil one egg?", "How do I boil an egg?"),
    ("I can't log in", "I cannot log in"),
    ("On the menu, what vegan options are there?", "What vegan options are there on the menu?"),
    ("Where can I find my invoice history?", "Where can I find my invioce history?"),
    ("Hi, how do I book a table? Thanks!", "How do I reserve a table?"),
    ("What is the fastest way to learn typing?", "What's the quickest way to learn typing?"),
    ("How do I align a table?", "Table alignment"),
]


@pytest.fixture(params=list(_OPEN), scope="session")
def verifier(request: pytest.FixtureRequest) -> PairVerifier:
    return _verifier(request.param)


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_look_alikes_are_vetoed(verifier: PairVerifier, one: str, other: str) -> None:
    """A pair that differs in a fact is refused whichever of the two is stored."""
    for query, candidate in ((one, other), (other, one)):
        verdict = verifier.verify(query, candidate, 0.97)
        assert not verdict.accepted
        assert verdict.rule
        assert verdict.reason


@pytest.mark.parametrize(("one", "other"), SAME_MEANING)
def test_same_meaning_passes(verifier: PairVerifier, one: str, other: str) -> None:
    """Another wording of the same facts is served."""
    for query, candidate in ((one, other), (other, one)):
        verdict = verifier.verify(query, candidate, 0.9)
        assert verdict.accepted, verdict.reason


@pytest.mark.parametrize("pair", [pair for pairs in TRAPS.values() for pair in pairs], ids=str)
def test_traps_stay_refused(pair: tuple[str, str]) -> None:
    """No later model or rule serves a trap that the default verifier once refused."""
    for query, candidate in (pair, pair[::-1]):
        assert not _verifier("learned").verify(query, candidate, 0.9).accepted


@pytest.mark.parametrize("pair", [p for pairs in PARAPHRASES.values() for p in pairs], ids=str)
def test_paraphrases_stay_served(pair: tuple[str, str]) -> None:
    """No later model or rule refuses a paraphrase that the default verifier once served."""
    for query, candidate in (pair, pair[::-1]):
        verdict = _verifier("learned").verify(query, candidate, 0.9)
        assert verdict.accepted, verdict.reason


def test_a_screened_verdict_is_the_verdict(verifier: PairVerifier) -> None:
    """What the cheap part settles, the whole verifier settles alike."""
    for one, other in (*LOOK_ALIKES, *SAME_MEANING):
        screened = verifier.screen(one, other, 0.9)
        assert screened is None or screened == verifier.verify(one, other, 0.9)


def test_screened_together_as_one_by_one(verifier: PairVerifier) -> None:
    """A lookup's candidates get the verdicts that each would get alone, in their order."""
    pairs = (*LOOK_ALIKES, *SAME_MEANING)
    for query, _ in pairs[::7]:
        looks = [Look(text, 0.7) for _, text in pairs] + [Look(query, 1.0), Look("", 0.6)]
        together = [verdict and verdict[:2] for verdict in verifier.screen_each(query, looks)]
        alone = (verifier.screen(query, *look) for look in looks)
        assert together == [verdict and verdict[:2] for verdict in alone]


def test_an_accepted_candidate_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind a candidate that is served costs nothing."""
    verifier = LearnedVerifier()
    read: list[str] = []

    def rule(_: str, text: str) -> Verdict:
        read.append(text)
        return ACCEPTED

    monkeypatch.setattr(verifier, "_rule", rule)
    looks = [Look("cancel it", 0.9), Look("cancel them", 0.8)]
    assert next(verifier.screen_each("cancel it", looks)) is ACCEPTED
    assert read == ["cancel it"]


@given(text=st.text(max_size=300))
def test_a_text_equals_itself(text: str) -> None:
    """No prompt, however odd, is told apart from itself."""
    for verifier in map(_verifier, _OPEN):
        assert verifier.verify(text, str(text), 1.0).accepted


_WORDS = """how do i not cancel 2 two 3pm Paris London from to enable disable 10 GB a.b 'x y'
? , - March may first an hour colleague"""
_Words = st.sampled_from(sorted(_WORDS.split()))


@settings(deadline=None)  # the model reads some of them, and the cores may be busy
@given(one=st.lists(_Words, max_size=12), other=st.lists(_Words, max_size=12))
def test_symmetric_and_repeatable(one: list[str], other: list[str]) -> None:
    """The verdict depends on the pair alone, not on which of the two is stored."""
    for verifier in map(_verifier, _OPEN):
        there = verifier.verify(" ".join(one), " ".join(other), 0.9)
        back = verifier.verify(" ".join(other), " ".join(one), 0.9)
        assert there.accepted == back.accepted
        assert there == verifier.verify(" ".join(one), " ".join(other), 0.9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" ".join(f"w{i}x" for i in range(1000)), " ".join(f"v{i}y" for i in range(1000))),
        (" ".join(f"lorem{chr(97 + i % 26)}" for i in range(900)), "dolor " * 900),
        ("1 " * 2000, "2 " * 2000),
        ("a." * 2000, "a/" * 2000),
        ("'" * 4000, '"' * 4000),
        ("from to " * 500, "to from " * 500),
    ],
)
def test_hostile_prompts_are_judged_in_time(one: str, other: str) -> None:
    """The longest prompts of the tier, made to be slow, cannot stall the event loop.

    The bound is ten times what is needed, so that a busy machine passes and a
    quadratic rule (seconds) does not.
    """
    for verifier in map(_verifier, _OPEN):
        started = time.process_time()
        verifier.verify(one[:4096], other[:4096], 0.9)
        assert time.process_time() - started < 0.5
