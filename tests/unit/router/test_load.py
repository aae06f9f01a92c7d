"""The load of a worker: own leases exactly, everybody else's within bounds."""

import pytest

from router.lease import Lease
from router.load import MAX_FOREIGN_SEQUENCES, WorkerLoad
from sidecache.v1 import worker_pb2
from tests.unit.router.fleet import Clock, make_worker

MAX = 65_536
HUGE = 2**64 - 1
REPORTS = {
    "huge": worker_pb2.GetLoadResponse(
        waiting_prompt_tokens=HUGE, running_sequences=2**32 - 1, waiting_sequences=2**32 - 1
    ),
    "idle": worker_pb2.GetLoadResponse(),
    "not a number": worker_pb2.GetLoadResponse(kv_cache_usage=float("nan")),
    "nothing": None,
}


async def test_a_lease_is_queued_until_its_first_token_and_active_until_its_end() -> None:
    """Every count goes back to where it was, however often the first token is told."""
    worker = make_worker("w1")
    lease = Lease(worker, prompt_tokens=1000, uncached_tokens=300)
    other = Lease(worker, prompt_tokens=50, uncached_tokens=50)
    assert (worker.leases, worker.load.queued, worker.load.active) == (2, 350, 1050)
    lease.first_token()
    lease.first_token()
    assert (worker.load.queued, worker.load.pending_tokens, worker.load.active) == (50, 50, 1050)
    lease.release()
    other.release()
    assert (worker.leases, worker.load.queued, worker.load.active) == (0, 0, 0)
    assert worker.load.pending_tokens == 0


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
async def test_what_a_worker_says_cannot_undercut_own_leases_nor_pass_the_bound(
    report: worker_pb2.GetLoadResponse | None,
) -> None:
    """A liar neither draws everything to itself nor drives everything away."""
    worker = make_worker("w1")
    Lease(worker, prompt_tokens=1000, uncached_tokens=1000)
    worker.load.hear(report, worker.leases, MAX)
    assert 1000 <= worker.load.queued <= 1000 + MAX
    assert 1000 <= worker.load.active <= 1000 + MAX
    assert 0 <= worker.load.foreign_sequences <= MAX_FOREIGN_SEQUENCES


async def test_other_routers_streams_count_once() -> None:
    """What this router has there is part of what the worker reports."""
    worker = make_worker("w1")
    Lease(worker, prompt_tokens=1000, uncached_tokens=400)
    report = worker_pb2.GetLoadResponse(
        waiting_prompt_tokens=5000, waiting_sequences=2, running_sequences=1
    )
    worker.load.hear(report, worker.leases, MAX)
    assert worker.load.queued == 400 + 4000
    assert worker.load.active == 1000 + 2 * 512
    worker.load.hear(None, worker.leases, MAX)
    assert worker.load.queued == 400


async def test_recent_prefill_fades() -> None:
    """After tau a token counts 1/e."""
    clock = Clock()
    load = WorkerLoad(clock)
    load.prefills(1000, tau_s=10.0)
    clock.now += 10.0
    assert load.recent(10.0) == pytest.approx(1000 / 2.718281828)
