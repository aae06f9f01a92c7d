"""The router's memory of its own routes."""

from hypothesis import given
from hypothesis import strategies as st

from router.routing.recent import RecentRoutes


def test_leading_prefixes_are_found_for_each_worker() -> None:
    """Every worker that was sent a beginning of the prompt, with how much of it."""
    recent = RecentRoutes(100)
    recent.note([1, 2, 3], "a", 0.0)
    recent.note([1, 2], "b", 1.0)
    recent.note([9, 2], "c", 1.0)
    assert recent.match([1, 2, 3, 4], since=0.0) == {"a": 3, "b": 2}
    assert recent.match([7, 2], since=0.0) == {}


def test_old_routes_do_not_count() -> None:
    """What should have come as an event by now is the index's to say."""
    recent = RecentRoutes(100)
    recent.note([1, 2], "a", 0.0)
    recent.note([1], "a", 5.0)
    assert recent.match([1, 2], since=1.0) == {"a": 1}


@given(st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 20))))
def test_memory_is_bounded(routes: list[tuple[list[int], int]]) -> None:
    """Whatever is noted, no more than so many names, each with few workers."""
    recent = RecentRoutes(10)
    for number, (names, worker) in enumerate(routes):
        recent.note(names, str(worker), float(number))
        assert len(recent) <= 10
    assert all(len(recent.match([name], since=0.0)) <= 8 for name in range(31))


def test_the_oldest_is_forgotten_first_and_a_prompt_from_its_end() -> None:
    """What is left of a prompt is its beginning, which is of use."""
    recent = RecentRoutes(4)
    recent.note([1, 2, 3], "a", 0.0)
    recent.note([7, 8], "a", 1.0)
    assert recent.match([1, 2, 3], since=0.0) == {"a": 2}
    assert recent.match([7, 8], since=0.0) == {"a": 2}
