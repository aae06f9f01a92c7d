"""Workers that do worse than their peers are left out, and never too many of them."""

import gc

from router.outliers import Outliers
from router.settings import OutlierSettings
from router.worker import Worker
from tests.unit.router.fleet import Clock, make_worker

SETTINGS = OutlierSettings(failures_to_open=3, open_s=1.0, eject_s=5.0, window_s=10.0)


async def fleet(count: int) -> tuple[Outliers, list[Worker], Clock]:
    clock = Clock()
    return Outliers(SETTINGS, clock), [make_worker(f"w{n}") for n in range(count)], clock


def serve(outliers: Outliers, worker: Worker, clock: Clock, ttft_s: float = 0.1) -> None:
    clock.now += 0.01
    outliers.answered(worker, ttft_s)
    outliers.completed(worker)


async def test_losses_in_a_row_open_the_breaker_and_one_stream_finds_out() -> None:
    """Half-open admits one probe; its success lets everybody in again."""
    outliers, workers, clock = await fleet(2)
    for _ in range(3):
        outliers.failed(workers[0])
    assert outliers.usable(workers) == workers[1:]
    clock.now += 1.0
    assert outliers.usable(workers) == workers
    outliers.chosen(workers[0])
    assert outliers.usable(workers) == workers[1:]
    outliers.answered(workers[0], 0.1)
    assert outliers.usable(workers) == workers


async def test_a_restarted_worker_is_a_new_one() -> None:
    """What its predecessor lost is not held against it."""
    outliers, workers, _ = await fleet(2)
    for _ in range(3):
        outliers.failed(workers[0])
    workers[0].epoch = "e2"
    assert outliers.usable(workers) == workers


async def test_a_slow_worker_is_out_for_a_time_that_grows() -> None:
    """Compared with its peers; twice as long when it comes back no better."""
    outliers, workers, clock = await fleet(3)
    times: list[float] = []
    for _ in range(2):
        while workers[0] in outliers.usable(workers):
            serve(outliers, workers[0], clock, ttft_s=3.0)
            for worker in workers[1:]:
                serve(outliers, worker, clock)
        began = clock.now
        while workers[0] not in outliers.usable(workers):
            clock.now += 0.1
        times.append(clock.now - began)
    assert 4.9 < times[0] < 5.2
    assert 9.9 < times[1] < 10.2
    assert outliers.ejections == 2


async def test_a_share_of_lost_streams_is_enough() -> None:
    """A worker that loses every other stream never fails often in a row."""
    outliers, workers, clock = await fleet(3)
    for _ in range(100):
        serve(outliers, workers[0], clock)
        outliers.failed(workers[0])
        for worker in workers[1:]:
            serve(outliers, worker, clock)
    assert outliers.usable(workers) == workers[1:]


async def test_what_all_share_is_nobodys_fault_and_half_stay() -> None:
    """When all are bad nobody is out; when most are, at most half."""
    outliers, workers, clock = await fleet(4)
    for _ in range(100):
        for worker in workers:
            serve(outliers, worker, clock)
            outliers.failed(worker)
    assert outliers.ejections == 0
    outliers, workers, clock = await fleet(4)
    for _ in range(200):
        for number, worker in enumerate(workers):
            serve(outliers, worker, clock, ttft_s=1.0 * 10**number)
    assert len(outliers.usable(workers)) >= 2
    assert outliers.ejections >= 1


async def test_who_only_does_worse_is_used_where_no_peer_is_left() -> None:
    """The better half may be gone by then; whoever loses every stream stays out."""
    outliers, workers, clock = await fleet(3)
    while workers[0] in outliers.usable(workers):
        serve(outliers, workers[0], clock, ttft_s=3.0)
        for worker in workers[1:]:
            serve(outliers, worker, clock)
    assert outliers.usable(workers[:1]) == workers[:1]
    for _ in range(3):
        outliers.failed(workers[0])
    assert outliers.usable(workers[:1]) == []


async def test_what_a_forgotten_workers_last_streams_say_goes_with_it() -> None:
    """It left with streams: they end after it was forgotten, and nobody is compared with it."""
    outliers = Outliers(OutlierSettings(failures_to_open=1), Clock())
    worker = make_worker("w1")
    outliers.forget(worker)
    outliers.completed(worker)
    outliers.failed(worker)
    assert len(outliers._records) == len(outliers._troubled) == 1
    del worker
    gc.collect()
    assert len(outliers._records) == len(outliers._troubled) == 0
