"""When a worker's silence is odd: pure looks, no clock."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.settings import QuietSettings
from router.silence import Finding, Silence

SETTINGS = QuietSettings(
    quiet_s=0.25, factor=3.0, max_quiet_s=1.0, least_answer_s=0.125, answer_s=0.5, memory_s=30.0
)
# A power of two: sums of it are exact.
LOOK_S = 0.0625


def stay_silent(silence: Silence, seconds: float, **more: float) -> list[Finding]:
    """Looks at a worker that owes words and says none."""
    looks = round(seconds / LOOK_S)
    return [silence.look(1.0, LOOK_S, is_due=True, **more) for _ in range(looks)]


def spoken() -> Silence:
    silence = Silence(SETTINGS)
    assert silence.look(1.0, LOOK_S, is_due=True) is Finding.SPEAKS
    return silence


def test_a_worker_that_falls_silent_is_asked_and_then_given_up() -> None:
    """After a quarter of a second, and half a second without an answer."""
    findings = stay_silent(spoken(), 1.0)
    assert findings.count(Finding.ASK) == 1
    assert findings.index(Finding.ASK) == 3
    assert findings.index(Finding.GONE) == 11


def test_where_answers_are_quick_less_patience_is_needed() -> None:
    """Three times its slowest answer of late, within bounds."""
    quick = stay_silent(spoken(), 1.0, answers_in_s=0.002)
    slow = stay_silent(spoken(), 1.0, answers_in_s=10.0)
    assert quick.index(Finding.GONE) == 5
    assert slow.index(Finding.GONE) == 11


def test_an_answer_is_life_and_teaches_patience() -> None:
    """A slow worker is asked ever more seldom, down to once in the longest silence."""
    silence, asked = spoken(), []
    for look in range(200):
        if silence.look(1.0, LOOK_S, is_due=True) is Finding.ASK:
            silence.answered()
            asked.append(look * LOOK_S)
    distances = [late - early for early, late in pairwise(asked)]
    assert distances == sorted(distances)
    assert max(distances) <= SETTINGS.max_quiet_s + 2 * LOOK_S
    assert len(asked) <= 13


def test_a_usual_silence_is_not_asked_about_and_is_forgotten_in_time() -> None:
    """A worker that speaks every 0.2 s is not asked after 0.25 s; nor for ever left alone."""
    silence = spoken()
    for heard in range(2, 30):
        for _ in range(4):
            assert silence.look(float(heard), LOOK_S, is_due=True) is not Finding.ASK
    assert silence.usual_s >= 0.15
    silence.look(98.0, LOOK_S, is_due=True)
    silence.look(99.0, 300.0, is_due=True)
    assert silence.usual_s < 0.01


def test_a_prefill_is_no_silence() -> None:
    """A worker that owes nothing yet may be silent for as long as it takes."""
    silence = spoken()
    assert {silence.look(1.0, LOOK_S, is_due=False) for _ in range(100)} == {Finding.SPEAKS}


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 0.24)), max_size=60))
def test_who_speaks_in_time_is_never_asked(words: list[tuple[bool, float]]) -> None:
    """Whatever the rhythm, as long as no silence reaches the bound."""
    silence, heard_at, quiet_s = spoken(), 1.0, 0.0
    for speaks, elapsed_s in words:
        if speaks or quiet_s + elapsed_s >= SETTINGS.quiet_s:
            heard_at, quiet_s = heard_at + 1.0, 0.0
        else:
            quiet_s += elapsed_s
        assert silence.look(heard_at, elapsed_s, is_due=True) in (
            Finding.SPEAKS,
            Finding.PATIENT,
        )
