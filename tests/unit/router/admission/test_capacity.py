"""What the fleet can run at once, as far as its workers say."""

from router.admission.capacity import Capacity, fleet_capacity
from router.admission.settings import AdmissionSettings
from router.worker import State, Worker
from sidecache.v1 import worker_pb2
from tests.unit.router.fleet import make_worker


def ready(name: str, slots: int = 8, kv_blocks: int = 100, running: int = 0) -> Worker:
    worker = make_worker(name)
    worker.state = State.READY
    report = worker_pb2.GetLoadResponse(
        max_sequences=slots, kv_blocks=kv_blocks, running_sequences=running
    )
    worker.load.hear(report, 0, 65536, block_size=16)
    return worker


def capacity(*workers: Worker, **settings: float) -> Capacity:
    model = workers[0].model
    assert model is not None
    return fleet_capacity(workers, model, AdmissionSettings(**settings))  # type: ignore[arg-type]


async def test_the_ready_workers_add_up() -> None:
    """Slots, and the KV caches' tokens with what is let in beyond them."""
    assert capacity(ready("a"), ready("b")) == Capacity(16, 2 * 2 * 1600, 2)
    assert capacity(ready("a"), ready("b"), ahead=1, kv_overcommit=1.0) == Capacity(18, 3200, 2)
    assert capacity(ready("a"), max_running=3, max_running_tokens=50) == Capacity(3, 50, 1)


async def test_streams_at_a_worker_that_gets_no_more_take_nobodys_slot() -> None:
    """Cordoned with five streams: they are held, and its three free slots are gone."""
    cordoned = ready("a")
    cordoned.leases, cordoned.cordoned = 5, True
    assert capacity(cordoned, ready("b")).slots == 5 + 8


async def test_other_routers_streams_count_but_never_take_everything() -> None:
    """A quarter of each worker stays this router's."""
    assert capacity(ready("a", running=4)).slots == 4
    assert capacity(ready("a", running=50)).slots == 2


async def test_a_worker_that_says_nothing_is_no_bound() -> None:
    """An unknown size is not a small one, and a missed report forgets no size."""
    silent = make_worker("a")
    silent.state = State.READY
    assert capacity(silent, ready("b")) == Capacity(None, None, 2)
    missed = ready("c")
    missed.load.hear(None, 0, 65536)
    assert capacity(missed).slots == 8
    answer = worker_pb2.GetModelResponse(name="m", revision="r1", epoch="e2")
    missed.introduce(answer)
    assert missed.load.most_slots == 0


async def test_without_a_ready_worker_nothing_is_known() -> None:
    """Who leases one says so."""
    assert capacity(make_worker("a")) == Capacity(None, None, 0)
