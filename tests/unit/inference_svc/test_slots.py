"""Sequence slots and the bounded queue before them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.slots import Slot, Slots
from sidecache.errors import Overloaded


async def test_first_come_first_served() -> None:
    """A small request does not overtake a large one that waits for room."""
    slots = Slots(4, 8)
    first, large, small = slots.request(3, 1), slots.request(4, 1), slots.request(1, 1)
    assert first.granted.done()
    assert not large.granted.done()
    assert not small.granted.done()
    slots.release(first)
    assert large.granted.done()
    assert not small.granted.done()


async def test_a_full_queue_refuses() -> None:
    """The refusal says what is full and when to come back."""
    slots = Slots(1, 1, retry_after_s=2.5)
    slots.request(1, 1)
    slots.request(1, 1)
    with pytest.raises(Overloaded, match="1 of 1 requests wait") as refused:
        slots.request(1, 1)
    assert refused.value.retry_after_s == 2.5


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), max_size=60))
async def test_the_books_balance(steps: list[tuple[int, int]]) -> None:
    """Whoever comes and goes, granted or waiting: never too many, and all is given back."""
    slots = Slots(4, 5)
    held: list[Slot] = []
    for sequences, which in steps:
        if which % 2 and held:
            leaving = held.pop(which % len(held))
            slots.release(leaving)
            slots.release(leaving)
        else:
            try:
                held.append(slots.request(sequences, 10))
            except Overloaded:
                assert slots.waiting_prompt_tokens == 50
        granted = [slot for slot in held if slot.granted.done()]
        assert slots.running == sum(slot.sequences for slot in granted) <= 4
        assert slots.waiting_prompt_tokens == 10 * (len(held) - len(granted))
        assert granted or not held
    for slot in held:
        slots.release(slot)
    assert slots.running == slots.waiting == 0


async def test_higher_priority_waits_less() -> None:
    """Among those who wait the highest priority is next; equals stay in their order."""
    slots = Slots(1, 8)
    holder = slots.request(1, 1)
    low, first, second = (slots.request(1, 1, priority) for priority in (0, 5, 5))
    for leaving, following in ((holder, first), (first, second), (second, low)):
        slots.release(leaving)
        assert following.granted.done()
