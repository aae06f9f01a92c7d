"""The workers, leased to one stream at a time."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from router.dispatch import Dispatcher
from router.lease import Lease
from router.load_watch import LoadWatch
from router.membership import Membership
from router.model import ServedModel
from router.outliers import Outliers
from router.prompt import RoutedPrompt
from router.quiet_watch import QuietWatch
from router.roster import Roster
from router.routing.choice import GO_BY_PREFIX
from router.settings import OutlierSettings, PoolSettings, QuietSettings, RoutingSettings
from router.worker import State, Worker
from sidecache.errors import InvalidRequest, ModelNotFound, NoHealthyWorker, NotFound

log = logging.getLogger(__name__)


class WorkerPool:
    """Every worker of every target, and which of them may get a stream.

    Args:
        targets: what :mod:`router.targets` reads.
        connect: opens an instrumented channel to an address.
        default_model: for requests that name none; empty: the only one served.
        outliers: knows whom to leave alone; None: nobody tells, so nobody is.
        quiet: when a worker that says nothing is left.
    """

    def __init__(
        self,
        targets: Sequence[str],
        settings: PoolSettings,
        routing: RoutingSettings,
        dispatcher: Dispatcher,
        connect: Callable[[str], grpc.aio.Channel],
        clock: Callable[[], float],
        default_model: str = "",
        outliers: Outliers | None = None,
        quiet: QuietSettings | None = None,
    ) -> None:
        self._settings = settings
        self._quiet = quiet or QuietSettings()
        self._dispatcher = dispatcher
        self._goes_by_prefix = routing.policy in GO_BY_PREFIX
        self._roster = Roster(settings, clock)
        self._outliers = outliers or Outliers(OutlierSettings(), clock)
        self._load_watch = LoadWatch(self._roster.all_ready, routing, clock)
        self._membership = Membership(
            targets,
            self._roster,
            settings,
            connect,
            clock,
            # Before its first stream: admission goes by what it says of its slots.
            on_found=self._load_watch.ask,
            on_left=self._outliers.forget,
        )
        self._quiet_watch = QuietWatch(
            lambda: self._roster.workers, self._quiet, clock, gone=self._abandon
        )
        self._default_model = default_model

    async def run(self) -> None:
        """Follow every target until cancelled, then close every channel."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._membership.run())
            tasks.create_task(self._load_watch.run())
            tasks.create_task(self._quiet_watch.run())

    async def wait_for_first_contact(self) -> None:
        """Return once every known worker has answered or failed to, bounded."""
        if self._membership.targets:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.probe_timeout_s):
                    await self._roster.wait_for_first_contact()

    def reconfigure(
        self, targets: Iterable[str], routing: RoutingSettings, default_model: str
    ) -> None:
        """Take new settings; streams under way stay where they are.

        Raises:
            SetupError: something that cannot be a target; nothing has changed.
        """
        self._membership.follow(targets)
        self._goes_by_prefix = routing.policy in GO_BY_PREFIX
        self._load_watch.settings = routing
        self._default_model = default_model

    @property
    def workers(self) -> list[Worker]:
        """All workers, ready or not, in the order they were found."""
        return self._roster.workers

    def addresses(self) -> tuple[str, ...]:
        """Where all workers are, ready or not."""
        return self._roster.addresses()

    def models(self) -> list[tuple[ServedModel, int]]:
        """Every model known, with the number of workers ready to serve it."""
        models = self._roster.models.values()
        return [(model, len(self._roster.ready(model))) for model in models]

    def default_model(self) -> str:
        """The model of requests that name none; empty if that is ambiguous."""
        models = self._roster.models
        if not self._default_model and len(models) == 1:
            return next(iter(models))
        return self._default_model

    def model(self, name: str) -> ServedModel:
        """The model of that name, or the default one for an empty name.

        A model stays known while its workers are gone: the cache may still
        answer for it.

        Raises:
            ModelNotFound: no worker serves or has served it.
            InvalidRequest: no name, and several models to choose from.
            NoHealthyWorker: nothing is known yet about any worker.
        """
        model = self._roster.models.get(name or self.default_model())
        if model is not None:
            return model
        served = ", ".join(sorted(self._roster.models))
        if not served:
            raise NoHealthyWorker("no worker has answered yet")
        if not name:
            raise InvalidRequest(f"empty; several are served: {served}", field="model")
        raise ModelNotFound(
            f"model {name[:128]!r} is not served; there are: {served}",
            kind="model",
            name=name[:128],
        )

    @contextmanager
    def lease(
        self,
        model: ServedModel,
        avoid: Collection[Worker] = (),
        prompt: RoutedPrompt | None = None,
        *,
        goes_on: bool = False,
    ) -> Iterator[Lease]:
        """Hold a worker for one stream.

        Args:
            model: what it has to serve.
            avoid: workers that were tried.
            prompt: what the choice goes by; None: whoever has the fewest streams.
            goes_on: the stream has begun; a doubtful worker is better than none.

        Raises:
            NoHealthyWorker: none of the model's workers outside ``avoid`` is ready.
        """
        candidates = self._roster.ready(model)
        if avoid:
            candidates = [worker for worker in candidates if worker not in avoid]
        if not candidates:
            raise NoHealthyWorker(f"no worker of {model.name} is ready")
        usable = self._outliers.usable(candidates)
        if not usable and not goes_on:
            raise NoHealthyWorker(f"every worker of {model.name} that is ready loses its streams")
        speaking = [worker for worker in usable or candidates if not worker.is_hushed]
        lease = self._dispatcher.lease(speaking or usable or candidates, prompt)
        self._outliers.chosen(lease.worker)
        try:
            yield lease
        finally:
            lease.release()

    def has_choice(self, model: ServedModel) -> bool:
        """Whether it can matter to a prompt which worker holds how much of it."""
        return self._goes_by_prefix and len(self._roster.ready(model)) > 1

    def serves(self, name: str, adapter: str = "") -> bool:
        """Whether a ready worker serves the model of that name, with that adapter if any."""
        model = self._roster.models.get(name)
        if model is None or (adapter and adapter not in model.adapters):
            return False
        return bool(self._roster.ready(model))

    def count_ready(self, names: Collection[str]) -> int:
        """Ready workers of these models together."""
        return sum(ready for model, ready in self.models() if model.name in names)

    def ready_workers(self, model: ServedModel) -> list[Worker]:
        """Those that may get a stream of the model now."""
        return list(self._roster.ready(model))

    def learn(self, model: ServedModel, prompt: RoutedPrompt, prompt_tokens: int) -> None:
        """Take in how many tokens a prompt really had."""
        self._dispatcher.learn(model, prompt, prompt_tokens)

    def has_idle_worker(self, model: ServedModel) -> bool:
        """Whether a ready worker of the model has no stream of this router."""
        return any(not worker.leases for worker in self._roster.ready(model))

    def suspect(self, worker: Worker) -> None:
        """Give the worker no stream until its health watch speaks for it again."""
        if worker.state is State.READY:
            log.warning("worker lost", extra={"worker": worker.name})
            self._roster.set_state(worker, State.UNHEALTHY)
            worker.doubted.set()

    def liveliest(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Those of the workers that nothing is held against; where there are none, all.

        For a stream that has stood still once: it goes by half the time that is quiet.
        """
        speaking = [
            w for w in workers if not w.is_hushed and not w.is_quiet(self._quiet.quiet_s / 2)
        ]
        return speaking or workers

    def _abandon(self, worker: Worker) -> None:
        """Have the streams of a worker that answers nobody go on elsewhere.

        A silence that most of them share is the machine's, or this process's own.
        """
        peers = self._roster.ready(worker.model) if worker.model is not None else []
        speaking = [one for one in peers if one is not worker and not one.is_hushed]
        if not speaking or 2 * len(speaking) < len(peers):
            return
        self.suspect(worker)
        for stream in list(worker.crowd.members):
            stream.leave_silent_worker()

    async def wait_for_change(self) -> None:
        """Return when a worker may have become ready, or ceased to be."""
        await self._roster.wait_for_change()

    def set_cordon(self, name: str, *, cordoned: bool) -> Worker:
        """Give a worker no new streams, or give it some again.

        Raises:
            NotFound: there is no worker of that name or address.
        """
        for worker in self._roster.workers:
            if name in (worker.name, worker.address):
                worker.cordoned = cordoned
                self._roster.index()
                return worker
        known = ", ".join(worker.name for worker in self._roster.workers) or "none"
        raise NotFound(f"no worker {name[:128]!r}; there are: {known}", kind="worker", name=name)
