"""The experiments, on real processes. Each proves that its fault struck, and that it would
notice if its claim were false."""

import pytest

from chaos.experiments import EXPERIMENTS, cache_sidecar, collector, worker_death
from chaos.journal import Journal
from chaos.runner import run


async def play(name: str) -> Journal:
    journal = await run(EXPERIMENTS[name])
    assert journal.passed, journal.summary()
    return journal


async def test_a_killed_cache_sidecar_is_not_noticed() -> None:
    """SIGKILL of the sidecar: no client error, no wrong stream, hits come back after a restart."""
    journal = await play("cache-killed")
    assert journal.figure("it was ended by SIGKILL") == -9
    assert journal.figure(cache_sidecar.NO_FAILED_CALL) == 0


async def test_a_hung_cache_sidecar_costs_at_most_the_lookup_deadline() -> None:
    """SIGSTOP of the sidecar: every lookup pays its deadline and no more, and nobody fails."""
    journal = await play("cache-hung")
    assert journal.figure("it is stopped") is True
    assert journal.figure(cache_sidecar.ADDED_TIME) <= 50 + cache_sidecar.TOLERANCE_MS


async def test_a_worker_killed_before_its_first_token_is_replaced() -> None:
    """SIGKILL of a worker that holds streams: they are whole, and right, from another worker."""
    journal = await play("worker-killed")
    assert journal.figure("streams lost their worker before the first token") >= 1
    assert journal.figure(worker_death.ALL_IN_TIME) <= worker_death.SLOWEST_S


@pytest.mark.parametrize("name", ["collector-dead", "collector-silent"])
async def test_a_lost_collector_changes_nothing(name: str) -> None:
    """Nobody there, or nobody answering: clients see no difference and shutdown stays bounded."""
    journal = await play(name)
    assert journal.figure("connections were struck") >= 1
    assert journal.figure(collector.SHUTDOWN) <= collector.SHUTDOWN_S
