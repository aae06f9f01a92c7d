"""Whatever happens in whatever order: who is refused, and what it has cost by then."""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.router.lossy_fleet import LossyFleet

# Three in a calm fleet; in one that loses others all the time, four and three alone. Another
# suspect may take the blame for one: eight were seen in 9 of 4,500 schedules, and never more.
MOST_WORKERS = 9


@settings(max_examples=60, deadline=None)
# Nobody is refused for a loss in company, not even after one alone.
@example(seed=481434917, workers=7, poisons=1, kill_share=0.05, streams=26)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(2, 8),
    poisons=st.integers(0, 4),
    kill_share=st.sampled_from((0.0, 0.002, 0.01, 0.05)),
    streams=st.integers(1, 40),
)
async def test_any_schedule(
    seed: int, workers: int, poisons: int, kill_share: float, streams: int
) -> None:
    """Nobody is refused for a death that he could not have caused; a poison's price is bounded."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    outcome = LossyFleet(chance, workers, poisons, kill_share, streams).run(1500)
    assert outcome.impossible == set()
    assert max(outcome.cost.values(), default=0) <= MOST_WORKERS
