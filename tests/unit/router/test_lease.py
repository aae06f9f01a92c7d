"""What a lease counts on its worker, from the choice to the end."""

import pytest

from router.lease import Lease
from tests.unit.router.fleet import make_worker


async def test_a_word_is_due_but_for_the_time_of_the_prefill() -> None:
    """Asked, and not answered yet; then prefilled, however long; then between tokens."""
    worker = make_worker("w1")
    lease = Lease(worker, 100, 40)
    assert (worker.words_due, worker.load.queued_tokens) == (1, 40)
    lease.answered()
    lease.answered()
    assert worker.words_due == 0
    lease.first_token()
    lease.first_token()
    assert (worker.words_due, worker.load.queued_tokens) == (1, 0)
    lease.answered()
    assert worker.words_due == 1
    lease.release()
    assert worker.words_due == 0


@pytest.mark.parametrize("steps", [[], ["answered"], ["first_token"], ["answered", "first_token"]])
async def test_wherever_a_stream_ends_nothing_of_it_stays(steps: list[str]) -> None:
    """Every figure is as it was before."""
    worker = make_worker("w1")
    other = Lease(worker, 7, 7)
    lease = Lease(worker, 100, 40)
    for step in steps:
        getattr(lease, step)()
    lease.release()
    load = worker.load
    assert (worker.leases, worker.words_due) == (1, 1)
    assert (load.queued_tokens, load.pending_tokens, load.active_tokens) == (7, 7, 7)
    other.release()
    assert (worker.leases, worker.words_due, load.active_tokens) == (0, 0, 0)
