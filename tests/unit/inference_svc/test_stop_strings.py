"""Stop strings, however tokens cut them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.stop_strings import StopStrings

# Few letters, so that stop strings overlap each other and themselves.
LETTERS = st.text("ab", min_size=1, max_size=4)


@given(st.lists(st.text("ab", max_size=5), max_size=12), st.lists(LETTERS, min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_string(parts: list[str], stops: list[str]) -> None:
    """However the text is cut, what comes out is all of it before the first stop string."""
    whole = "".join(parts)
    # Character by character: the first to be complete, and the longest of those.
    met = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    matcher = StopStrings(stops)
    output = ""
    stopped = False
    for part in parts:
        passed, stopped = matcher.push(part)
        output += passed
        if stopped:
            break
    if not stopped:
        output += matcher.flush()
    assert stopped == bool(met)
    assert output == (whole[: min(met)[1]] if met else whole)


@given(st.lists(st.text("ab", max_size=5), max_size=12), st.lists(LETTERS, min_size=1, max_size=3))
def test_nothing_is_held_without_cause(parts: list[str], stops: list[str]) -> None:
    """What is held back is always a proper beginning of some stop string."""
    matcher = StopStrings(stops)
    seen = output = ""
    for part in parts:
        passed, stopped = matcher.push(part)
        if stopped:
            return
        seen += part
        output += passed
        held = seen[len(output) :]
        assert any(stop.startswith(held) and stop != held for stop in stops)


def test_no_stop_strings_hold_nothing() -> None:
    """Without stop strings text passes as it comes."""
    matcher = StopStrings(())
    assert matcher.push("abc") == ("abc", False)
    assert matcher.flush() == ""


@pytest.mark.parametrize("cut", range(7))
def test_a_stop_string_across_two_tokens(cut: int) -> None:
    """Its first half is held back, and it is never part of the text."""
    text = "so END!"
    matcher = StopStrings(["END"])
    first, stopped_at_once = matcher.push(text[:cut])
    second, stopped = ("", True) if stopped_at_once else matcher.push(text[cut:])
    assert stopped
    assert first + second == "so "
