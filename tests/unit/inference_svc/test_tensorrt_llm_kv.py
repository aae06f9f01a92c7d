"""KV events to names: never a wrong one, whatever the engine sends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.engines.tensorrt_llm_kv import KvTranslator
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from sidecache.kv_blocks import BlockHasher
from tests.fakes.tensorrt_llm.kv_cache import Bugs, FakeKvCache

SIZE = 4
PROMPTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=24),
        st.integers(0, 9),
        st.sampled_from(["", "red"]),
    ),
    max_size=25,
)


class Told:
    """Which names are held, as a listener sees it."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.events: list[KvEvent] = []

    def __call__(self, event: KvEvent) -> None:
        self.events.append(event)
        match event:
            case BlocksStored(hashes, parent):
                assert parent is None or parent in self.held
                assert not self.held & set(hashes)
                self.held |= set(hashes)
            case BlocksRemoved(hashes):
                assert set(hashes) <= self.held
                self.held -= set(hashes)
            case CacheCleared():
                self.held.clear()


def run(prompts: list[tuple[list[int], int, str]], bugs: Bugs) -> tuple[Told, set[int], set[int]]:
    """Serve the prompts one after the other: what was told, what is true, what ever was."""
    told = Told()
    translator = KvTranslator(SIZE, told, 10_000)
    cache = FakeKvCache(SIZE, 12, bugs, reuse=True)
    true_name: dict[int, int] = {}
    for prompt, generated, salt in prompts:
        translator.sending(prompt, "", salt)
        tokens = [*prompt, *([7] * generated)]
        numbers = [number for number, _ in cache._chain(tokens, salt)]
        true_name |= zip(numbers, BlockHasher(SIZE, "", salt).hashes(tokens), strict=True)
        held, _ = cache.begin(prompt, salt)
        cache.store(prompt, salt, held, ())
        cache.end(tokens, salt, held)
        for event in cache.events():
            translator.event(event)
    return told, {true_name[number] for number in cache.numbers}, set(true_name.values())


@given(PROMPTS)
@settings(deadline=None)  # the cores may be busy
def test_what_is_told_is_what_is_held(prompts: list[tuple[list[int], int, str]]) -> None:
    """Nothing is told that is not held; what is left out could be two salts' own."""
    told, true, _ = run(prompts, Bugs())
    assert told.held <= true
    if all(salt == "" for _, _, salt in prompts):
        assert told.held == true


@given(PROMPTS)
@settings(deadline=None)  # the cores may be busy
def test_a_wrong_parent_makes_no_wrong_name_in_a_prompt(
    prompts: list[tuple[list[int], int, str]],
) -> None:
    """Issue 3543: a block that no prompt vouches for is left out."""
    unanswered = [(prompt, 0, salt) for prompt, _, salt in prompts]
    told, true, _ = run(unanswered, Bugs())
    wrong, _, ever = run(unanswered, Bugs(wrong_parent=True))
    assert told.held <= true
    misnamed = wrong.held - ever
    # After a prompt's end any tokens may follow, so there a wrong parent can pass.
    assert len(misnamed) <= len(prompts)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event_id": 1},
        {"event_id": 1, "data": None, "window_size": 8192},
        {"event_id": 1, "data": {"type": "stored"}, "window_size": 8192},
        {"event_id": 1, "data": {"type": "removed", "block_hashes": [None]}, "window_size": 8192},
        {"event_id": 1, "data": {"type": "removed", "block_hashes": [1.5]}, "window_size": 8192},
        {"event_id": 1, "data": {"type": "removed", "block_hashes": [True]}, "window_size": 8192},
    ],
)
def test_garbage_forgets_the_cache(event: dict[str, Any]) -> None:
    """An event nobody understands may have been a removal."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    translator.event(event)
    assert told.events == [CacheCleared()]
    assert translator.counts.garbled == 1


def stored(event_id: int, number: int, tokens: list[int], **more: Any) -> dict[str, Any]:
    """One block stored as a root."""
    unique = [{"token_id": each, "token_extra_id": more.get("extra", 0)} for each in tokens]
    block = {"block_hash": number, "tokens": unique, "cache_level": 0, "priority": 35}
    event = {
        "event_id": event_id,
        "data": {"type": "stored", "parent_hash": None, "blocks": [block]},
        "window_size": more.get("window", 8192),
    }
    return event | ({"attention_dp_rank": more["rank"]} if "rank" in more else {})


def test_a_block_in_a_prompts_middle_must_fit_there() -> None:
    """Issue 3543: the third block on top of the first one is nobody's, and is left out."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    translator.sending(prompt, "", "")
    translator.event(stored(0, 77, prompt[:4]))
    wrong = stored(1, 78, prompt[8:12])
    wrong["data"]["parent_hash"] = 77
    translator.event(wrong)
    assert told.held == set(BlockHasher(SIZE).hashes(prompt[:4]))
    assert translator.counts.unknown_parents == 1


def test_two_ranks_hold_one_name() -> None:
    """With attention data parallelism a block is gone when the last rank has dropped it."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    translator.sending([1, 2, 3, 4, 5], "", "")
    for rank in (0, 1):
        translator.event(stored(0, 77, [1, 2, 3, 4], rank=rank))
    removed = {"type": "removed", "block_hashes": [77]}
    translator.event({"event_id": 1, "data": removed, "window_size": 8192, "attention_dp_rank": 0})
    assert len(told.held) == 1
    translator.event({"event_id": 1, "data": removed, "window_size": 8192, "attention_dp_rank": 1})
    assert not told.held
    assert translator.counts.gaps == 0


def test_only_the_longest_window_counts() -> None:
    """Layers with a short window forget early; that says nothing of the prefix."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    translator.sending([1, 2, 3, 4, 5], "", "")
    translator.event(stored(0, 77, [1, 2, 3, 4]))
    removed = {"type": "removed", "block_hashes": [77]}
    translator.event({"event_id": 1, "data": removed, "window_size": 512})
    assert len(told.held) == 1


def test_pictures_have_no_names() -> None:
    """A block with something beside text is left out."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    translator.sending([1, 2, 3, 4, 5], "", "")
    translator.event(stored(0, 77, [1, 2, 3, 4], extra=5))
    assert not told.held


def test_two_salts_at_once_are_ambiguous() -> None:
    """Two tenants send one prompt, one block comes: nobody can say whose it is."""
    told = Told()
    translator = KvTranslator(SIZE, told, 100)
    for salt in ("red", "blue"):
        translator.sending([1, 2, 3, 4, 5], "", salt)
    translator.event(stored(0, 77, [1, 2, 3, 4]))
    assert not told.held
    assert translator.counts.ambiguous_roots == 1


def test_too_many_blocks_are_forgotten() -> None:
    """The table is bounded: past it the worker says that it holds nothing it knows of."""
    told = Told()
    translator = KvTranslator(SIZE, told, 3)
    for index in range(4):
        translator.sending([index] * 5, "", "")
        translator.event(stored(index, index, [index] * 4))
    assert told.events[-1] == CacheCleared()
