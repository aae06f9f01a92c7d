"""What lost streams say of their worker."""

from opentelemetry.sdk.metrics import MeterProvider

from router.lease import Lease
from router.outliers import Outliers
from router.passage import Passage
from router.recovery import Recovery
from router.settings import OutlierSettings, QuarantineSettings, RetrySettings
from router.tape import Tape
from router.worker import Worker
from sidecache.errors import EngineFailed, Overloaded
from tests.unit.router.fleet import Clock, chat, make_ticket, make_worker


def make_recovery(outliers: Outliers, clock: Clock) -> Recovery:
    meter = MeterProvider().get_meter("test")
    return Recovery(RetrySettings(), QuarantineSettings(), outliers, meter, clock)


def aboard(recovery: Recovery, worker: Worker, number: int, clock: Clock) -> Passage:
    ticket = make_ticket(chat(f"prompt {number}"))
    passage = Passage(
        Lease(worker), ticket, Tape(ticket, 1 << 20, clock), None, clock, is_exact=True
    )
    recovery.quarantine.begins(passage, passage.crowd)
    return passage


async def test_a_worker_lost_with_all_its_streams_has_failed_once() -> None:
    """Thirty streams that end with it do not open its breaker thirty times over."""
    clock = Clock()
    outliers = Outliers(OutlierSettings(failures_to_open=2), clock)
    recovery, worker = make_recovery(outliers, clock), make_worker("w1")
    passages = [aboard(recovery, worker, number, clock) for number in range(30)]
    for passage in passages:
        passage.worker_is_lost = True
        recovery.lost(passage, EngineFailed("gone"))
    assert outliers.usable([worker]) == [worker]
    again = aboard(recovery, worker, 30, clock)
    again.worker_is_lost = True
    recovery.lost(again, EngineFailed("gone"))
    assert outliers.usable([worker]) == []


async def test_streams_lost_one_by_one_are_as_many_failures() -> None:
    """Where the worker goes on with the others, each is its own; a refusal is none."""
    clock = Clock()
    outliers = Outliers(OutlierSettings(failures_to_open=2), clock)
    recovery, worker = make_recovery(outliers, clock), make_worker("w1")
    one, other = (aboard(recovery, worker, number, clock) for number in range(2))
    recovery.lost(one, Overloaded("full"))
    recovery.lost(one, EngineFailed("broken"))
    assert outliers.usable([worker]) == [worker]
    recovery.lost(other, EngineFailed("broken"))
    assert outliers.usable([worker]) == []


async def test_nobody_is_blamed_for_a_worker_that_hangs() -> None:
    """A machine that stands still is far likelier than a prompt that makes it."""
    clock = Clock()
    recovery = make_recovery(Outliers(OutlierSettings(), clock), clock)
    worker = make_worker("w1")
    passage = aboard(recovery, worker, 0, clock)
    passage.worker_hangs = True
    recovery.lost(passage, EngineFailed("silent"))
    assert recovery.quarantine.is_empty
    assert worker.crowd is not passage.crowd
