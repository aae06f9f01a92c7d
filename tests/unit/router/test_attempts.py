"""Waiting for a worker to try a suspected prompt on, and what is left of the wait."""

import asyncio

import grpc
import pytest

from router.attempts import Attempts
from router.dispatch import Dispatcher
from router.lease import Lease
from router.outliers import Outliers
from router.pool import WorkerPool
from router.quarantine import prompt_key
from router.routing.configured import make_configured
from router.settings import LimitSettings, OutlierSettings, PoolSettings, RoutingSettings
from router.tape import Tape
from router.worker import State, Worker
from tests.unit.router.fleet import Clock, chat, make_ticket, make_worker
from tests.unit.router.flying import steps
from tests.unit.router.test_quarantine import Stream, lose
from tests.unit.router.test_recovery import make_recovery


def pool_of(workers: list[Worker], clock: Clock) -> WorkerPool:
    """A pool that knows these, all of them ready."""
    routing = RoutingSettings()
    dispatcher = Dispatcher(make_configured(routing), routing, clock)
    connect = grpc.aio.insecure_channel
    pool = WorkerPool([], PoolSettings(), routing, dispatcher, connect, clock)
    for worker in workers:
        pool._roster.add(worker)
        pool._roster.set_state(worker, State.READY)
    return pool


@pytest.mark.parametrize("is_lost", [False, True], ids=["while it is ready", "while it is not"])
async def test_no_worker_stays_reserved_for_who_waits_no_more(is_lost: bool) -> None:
    """Also where the suspicion went, or the worker, before the wait ended."""
    clock = Clock()
    workers = [make_worker(name) for name in ("w1", "w2", "w3")]
    pool = pool_of(workers, clock)
    recovery = make_recovery(Outliers(OutlierSettings(), clock), clock)
    ticket = make_ticket(chat("hello"))
    key = prompt_key(ticket)
    lose(recovery.quarantine, Stream(key))
    lose(recovery.quarantine, Stream(key))
    for worker in workers:
        Lease(worker)
    tape = Tape(ticket, 1 << 20, clock)
    attempts = Attempts(pool, LimitSettings(), recovery, ticket, tape)
    waiting = asyncio.create_task(attempts.may_go_on())
    await steps(3)
    (reserved,) = [worker for worker in workers if worker.crowd.is_taken]
    if is_lost:
        pool._roster.set_state(reserved, State.UNHEALTHY)
    # Another stream of the same prompt got to its end.
    recovery.quarantine.completed(Stream(key))
    assert recovery.quarantine.is_empty
    async with asyncio.timeout(10):
        await waiting
    assert not any(worker.crowd.is_taken for worker in workers)
