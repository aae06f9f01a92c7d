"""Only what arrives within the window counts, and callers are out of step from the start."""

import asyncio
import time
from collections.abc import Callable

from benchmarks.steady import SEEDS_EACH, closed_loops


async def test_the_window_is_what_counts() -> None:
    """Tokens before it are not counted, and its answers are whole."""
    asked: dict[int, list[int]] = {}

    async def answer(seed: int, max_tokens: int, told: Callable[[int], None]) -> None:
        asked.setdefault(seed // SEEDS_EACH, []).append(max_tokens)
        for _ in range(max_tokens):
            await asyncio.sleep(0.001)
            told(1)

    begin = time.monotonic() + 0.05
    tally = await closed_loops(answer, range(4), 4, 8, 0, (begin, begin + 0.1))
    assert [asked[number][0] for number in range(4)] == [2, 4, 6, 8]
    assert all(set(lengths[1:]) == {8} for lengths in asked.values())
    assert tally.short == 0
    assert 0 < tally.tokens <= 4 * 100
    everything = sum(sum(lengths) for lengths in asked.values())
    assert tally.tokens < everything, "what came before the window was counted"
    assert tally.first_token_s


async def test_an_answer_cut_short_is_noticed() -> None:
    """A path that loses tokens must not look fast."""

    async def answer(_seed: int, max_tokens: int, told: Callable[[int], None]) -> None:
        await asyncio.sleep(0.001)
        told(max_tokens - 1)

    begin = time.monotonic()
    tally = await closed_loops(answer, range(1), 1, 8, 0, (begin, begin + 0.03))
    assert tally.short > 0
