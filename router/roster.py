"""The workers that are known, and which of them may get a stream of which model."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from router.damping import Damping
from router.model import ServedModel
from router.settings import PoolSettings
from router.worker import State, Worker

log = logging.getLogger(__name__)


class Roster:
    """Every worker by its address, indexed by what it serves.

    Workers of one name that differ in checkpoint or build are never mixed: each kind
    is a :class:`ServedModel` of its own.

    Args:
        settings: how a worker that is lost again and again is damped.
        clock: monotonic seconds.
    """

    def __init__(self, settings: PoolSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._models: dict[str, ServedModel] = {}
        self._ready: dict[ServedModel, list[Worker]] = {}
        self._damping: dict[str, Damping] = {}
        self._changed = asyncio.Event()
        self._contacted: set[str] = set()
        self._first_contact = asyncio.Event()
        self._is_complete = False

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def workers(self) -> list[Worker]:
        """All of them, ready or not, in the order they were found."""
        return list(self._workers.values())

    @property
    def models(self) -> dict[str, ServedModel]:
        """Every model known by its name; it stays while its workers are gone."""
        return self._models

    def get(self, address: str) -> Worker | None:
        """The worker at this address, if one is watched there."""
        return self._workers.get(address)

    def addresses(self) -> tuple[str, ...]:
        """Where all workers are, ready or not."""
        return tuple(self._workers)

    def ready(self, model: ServedModel) -> list[Worker]:
        """Those that may get a stream of the model; not to be changed."""
        return self._ready.get(model, [])

    def all_ready(self) -> list[Worker]:
        """Those that may get a stream, of any model."""
        return [worker for workers in self._ready.values() for worker in workers]

    def add(self, worker: Worker) -> None:
        """Know a worker from now on."""
        self._workers[worker.address] = worker
        self._damping[worker.address] = Damping(self._settings, self._clock)

    def remove(self, worker: Worker) -> None:
        """Know it no more; another one may be known at its address by now."""
        if self._workers.get(worker.address) is worker:
            del self._workers[worker.address], self._damping[worker.address]
            self._contacted.discard(worker.address)
            self.index()

    def set_state(self, worker: Worker, state: State) -> None:
        """Take in a worker's health; one that is lost too often has to wait for its return.

        A worker that has been removed may still have streams, and be found lost by them.
        """
        if worker.state is not state:
            log.info("worker is %s", state.value, extra={"worker": worker.name})
            was_ready = worker.state is State.READY
            worker.state = state
            if self._workers.get(worker.address) is not worker:
                return
            if was_ready:
                self._damping[worker.address].lost()
            elif state is State.READY:
                self._hold_back(worker)
        self.index()

    def note_contact(self, address: str) -> None:
        """A worker has answered, or failed to."""
        self._contacted.add(address)
        self._check_contact()

    def all_found(self) -> None:
        """Every target has been looked at; who is still missing came later."""
        self._is_complete = True
        self._check_contact()

    def _check_contact(self) -> None:
        if self._is_complete and self._contacted >= self._workers.keys():
            self._first_contact.set()

    def have_met(self, addresses: AbstractSet[str]) -> bool:
        """Whether all of these have answered, or failed to."""
        return self._contacted >= addresses

    async def wait_for_first_contact(self) -> None:
        """Return once every known worker has answered or failed to."""
        await self._first_contact.wait()

    async def wait_for_change(self) -> None:
        """Return when a worker may have become ready, or ceased to be."""
        await self._changed.wait()

    def index(self) -> None:
        """Say again which workers are ready for which model.

        Where one model's workers differ (a rolling change of checkpoint), the
        kind that most of them have is the one requests are keyed and sent to.
        """
        ready: defaultdict[ServedModel, list[Worker]] = defaultdict(list)
        for worker in self._workers.values():
            if worker.model is not None and worker.is_ready:
                ready[worker.model].append(worker)
        self._ready = {model: _undamped(workers) for model, workers in ready.items()}
        self._changed.set()
        self._changed = asyncio.Event()
        for model in sorted(ready, key=lambda m: (len(ready[m]), m.revision, m.engine_build)):
            self._models[model.name] = model

    def _hold_back(self, worker: Worker) -> None:
        hold_s = self._damping[worker.address].hold_s()
        if not hold_s:
            return
        log.warning(
            "worker comes and goes: no stream for %.1f s", hold_s, extra={"worker": worker.name}
        )
        worker.is_damped = True
        since = worker.state_since
        asyncio.get_running_loop().call_later(hold_s, self._release, worker, since)

    def _release(self, worker: Worker, since: float) -> None:
        """The wait is over, unless the worker was lost again meanwhile."""
        if worker.state_since == since and self._workers.get(worker.address) is worker:
            worker.is_damped = False
            self.index()


def _undamped(workers: list[Worker]) -> list[Worker]:
    """Those that are not held back; all of them where there is no other."""
    return [worker for worker in workers if not worker.is_damped] or workers
