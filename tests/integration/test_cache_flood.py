"""A flood of new entries: bounded, and another tenant's answers outlive it."""

from pathlib import Path

from tests.fixtures.cached import if_cached, until_cached
from tests.fixtures.stack import scripted_stack


async def test_a_tenants_flood_costs_the_others_nothing(tmp_path: Path) -> None:
    """One tenant fills the store twice over: its own answers leave, nobody else's."""
    cache = {"max_bytes": 1 << 20, "max_answer_bytes": 1 << 18}
    async with (
        scripted_stack(tmp_path, cache=cache) as stack,
        stack.connect("umbrella") as flood,
        stack.connect("operator") as operator,
    ):
        for n in range(5):
            await until_cached(stack.client, f"kept {n}")
        for n in range(300):
            # The prompt is kept with its answer, and counted.
            answer = await flood.complete(f"flood {n} " * 700, max_tokens=4)
            assert len(answer.token_ids) == 4
        await until_cached(flood, "the last of it")
        for n in range(5):
            assert await if_cached(stack.client, f"kept {n}") is not None
        stats = (await operator.cache_stats()).stats
        assert stats.bytes <= stats.max_bytes
        assert stats.evicted > 0
