"""Who gets which variant."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from router.splits.estimates import binomial_tail
from router.splits.share import pick

LABELS = ("a", "b", "c", "d")
KEYS = 2000

weights = st.dictionaries(
    st.sampled_from(LABELS), st.floats(0.1, 100) | st.just(0.0), min_size=1
).filter(lambda w: sum(w.values()) > 0)


def chosen(split: str, by: dict[str, float]) -> list[str]:
    return [pick(split, f"tenant-{n}".encode(), by) for n in range(KEYS)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(weights, st.text(max_size=5))
def test_shares_are_the_weights(by: dict[str, float], split: str) -> None:
    """Each variant gets its share within binomial tolerance, and one of weight 0 nothing."""
    counts = Counter(chosen(split, by))
    for label, weight in by.items():
        share, count = weight / sum(by.values()), counts[label]
        assert binomial_tail(count, KEYS, share) > 1e-6
        assert binomial_tail(KEYS - count, KEYS, 1 - share) > 1e-6
        assert weight or not count


@settings(max_examples=30, deadline=None, derandomize=True)
@given(weights, st.sampled_from(LABELS), st.floats(0.1, 100))
def test_a_change_moves_only_whom_it_must(by: dict[str, float], label: str, weight: float) -> None:
    """The same key gets the same variant; with one weight changed it stays, or goes to or from
    that variant."""
    before, after = chosen("m", by), chosen("m", by | {label: weight})
    assert before == chosen("m", dict(reversed(by.items())))
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    grew = weight > by.get(label, 0.0)
    assert all((new if grew else old) == label for old, new in moved)


def test_splits_choose_independently() -> None:
    """Who gets the canary of one split does not get every canary."""
    by = {"a": 1.0, "b": 1.0}
    same = sum(x == y for x, y in zip(chosen("m", by), chosen("n", by), strict=True))
    assert 0.4 < same / KEYS < 0.6
