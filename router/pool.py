"""The workers: found, watched, and leased to one stream at a time."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from router.dispatch import Dispatcher
from router.lease import Lease
from router.load_watch import LoadWatch
from router.model import ServedModel
from router.prompt import RoutedPrompt
from router.routing.choice import GO_BY_PREFIX
from router.settings import PoolSettings, RoutingSettings
from router.targets import FILE_PREFIX, check_target, is_fixed, resolve
from router.worker import State, Worker
from sidecache.errors import InvalidRequest, ModelNotFound, NoHealthyWorker, NotFound, SetupError
from sidecache.v1 import worker_pb2

log = logging.getLogger(__name__)

_HEALTH_SERVICE = "sidecache.v1.InferenceService"


class WorkerPool:
    """Every worker of every target, and which of them are ready.

    Args:
        targets: what :mod:`router.targets` reads.
        connect: opens an instrumented channel to an address.
        default_model: for requests that name none; empty: the only one served.
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
    ) -> None:
        self._targets = [check_target(target) for target in targets]
        self._settings = settings
        self._dispatcher = dispatcher
        self._goes_by_prefix = routing.policy in GO_BY_PREFIX
        self._load_watch = LoadWatch(self._all_ready, routing)
        self._connect = connect
        self._clock = clock
        self._default_model = default_model
        self._workers: dict[str, Worker] = {}
        self._models: dict[str, ServedModel] = {}
        self._ready: dict[ServedModel, list[Worker]] = {}
        self._changed = asyncio.Event()
        self._contacted: set[str] = set()
        self._first_contact = asyncio.Event()

    async def run(self) -> None:
        """Follow every target until cancelled, then close every channel."""
        async with asyncio.TaskGroup() as tasks:
            for target in self._targets:
                tasks.create_task(self._follow_target(target, tasks))
            tasks.create_task(self._load_watch.run())

    async def wait_for_first_contact(self) -> None:
        """Return once every known worker has answered or failed to, bounded."""
        if self._targets:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.probe_timeout_s):
                    await self._first_contact.wait()

    @property
    def workers(self) -> list[Worker]:
        """All workers, ready or not, in the order they were found."""
        return list(self._workers.values())

    def addresses(self) -> tuple[str, ...]:
        """Where all workers are, ready or not."""
        return tuple(self._workers)

    def models(self) -> list[tuple[ServedModel, int]]:
        """Every model known, with the number of workers ready to serve it."""
        return [(model, len(self._ready.get(model, ()))) for model in self._models.values()]

    def default_model(self) -> str:
        """The model of requests that name none; empty if that is ambiguous."""
        if not self._default_model and len(self._models) == 1:
            return next(iter(self._models))
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
        model = self._models.get(name or self.default_model())
        if model is not None:
            return model
        served = ", ".join(sorted(self._models))
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
    ) -> Iterator[Lease]:
        """Hold a worker for one stream.

        Args:
            model: what it has to serve.
            avoid: workers that were tried.
            prompt: what the choice goes by; None: whoever has the fewest streams.

        Raises:
            NoHealthyWorker: none of the model's workers outside ``avoid`` is ready.
        """
        candidates = self._ready.get(model, ())
        if avoid:
            candidates = [worker for worker in candidates if worker not in avoid]
        if not candidates:
            raise NoHealthyWorker(f"no worker of {model.name} is ready")
        lease = self._dispatcher.lease(candidates, prompt)
        try:
            yield lease
        finally:
            lease.release()

    def has_choice(self, model: ServedModel) -> bool:
        """Whether it can matter to a prompt which worker holds how much of it."""
        return self._goes_by_prefix and len(self._ready.get(model, ())) > 1

    def ready_workers(self, model: ServedModel) -> list[Worker]:
        """Those that may get a stream of the model now."""
        return list(self._ready.get(model, ()))

    def learn(self, model: ServedModel, prompt: RoutedPrompt, prompt_tokens: int) -> None:
        """Take in how many tokens a prompt really had."""
        self._dispatcher.learn(model, prompt, prompt_tokens)

    def _all_ready(self) -> list[Worker]:
        return [worker for workers in self._ready.values() for worker in workers]

    def has_idle_worker(self, model: ServedModel) -> bool:
        """Whether a ready worker of the model has no stream of this router."""
        return any(not worker.leases for worker in self._ready.get(model, ()))

    def suspect(self, worker: Worker) -> None:
        """Give the worker no stream until its health watch speaks for it again."""
        if worker.state is State.READY:
            log.warning("worker lost", extra={"worker": worker.name})
            self._set_state(worker, State.UNHEALTHY)
            worker.doubted.set()

    async def wait_for_change(self) -> None:
        """Return when a worker may have become ready, or ceased to be."""
        await self._changed.wait()

    def set_cordon(self, name: str, *, cordoned: bool) -> Worker:
        """Give a worker no new streams, or give it some again.

        Raises:
            NotFound: there is no worker of that name or address.
        """
        for worker in self._workers.values():
            if name in (worker.name, worker.address):
                worker.cordoned = cordoned
                self._index()
                return worker
        known = ", ".join(worker.name for worker in self._workers.values()) or "none"
        raise NotFound(f"no worker {name[:128]!r}; there are: {known}", kind="worker", name=name)

    async def _follow_target(self, target: str, tasks: asyncio.TaskGroup) -> None:
        """Keep a watch over each address a target stands for, as they come and go."""
        watches: dict[str, asyncio.Task[None]] = {}
        complaint = ""
        settings = self._settings
        is_file = target.startswith(FILE_PREFIX)
        interval_s = settings.file_interval_s if is_file else settings.resolve_interval_s
        while True:
            try:
                addresses, trouble = await resolve(target), ""
            except (OSError, SetupError) as error:
                # What was last known stays: a slip of an editor must not empty the fleet.
                addresses, trouble = frozenset(watches), str(error)
            if trouble and trouble != complaint:
                log.warning("the old workers of %s stay: %s", target, trouble)
            complaint = trouble
            for address in addresses - watches.keys():
                if len(self._workers) < self._settings.max_workers:
                    watches[address] = tasks.create_task(self._watch(address))
            # Those that come are to have answered, or failed to, before others go.
            met = self._contacted >= addresses & watches.keys()
            for address, watch in list(watches.items()):
                if self._has_left(address, met and address not in addresses):
                    watch.cancel()
                    del watches[address]
            if is_fixed(target):
                return
            await asyncio.sleep(interval_s)

    def _has_left(self, address: str, leaves: bool) -> bool:
        """Give a worker that leaves no new stream; whether its running ones are over too."""
        worker = self._workers.get(address)
        if worker is None:
            return leaves
        if leaves is not (worker.leaving_since is not None):
            log.info("worker %s", "leaves" if leaves else "stays", extra={"worker": worker.name})
            worker.leaving_since = self._clock() if leaves else None
            self._index()
        if worker.leaving_since is None:
            return False
        over = self._clock() - worker.leaving_since >= self._settings.leave_grace_s
        return over or not worker.leases

    async def _watch(self, address: str) -> None:
        """Keep one worker's state true for as long as its address is known."""
        channel = self._connect(address)
        worker = self._workers[address] = Worker(address, channel, self._clock)
        backoff_s = self._settings.min_backoff_s
        try:
            while True:
                try:
                    if await self._follow_health(worker):
                        backoff_s = self._settings.min_backoff_s
                except Exception:
                    # One worker's odd answer must not end the watch over the others.
                    log.exception("watching a worker failed", extra={"worker": worker.name})
                self._set_state(worker, State.UNHEALTHY)
                self._note_contact(address)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._settings.max_backoff_s)
        finally:
            del self._workers[address]
            self._contacted.discard(address)
            self._index()
            await channel.close(grace=None)

    async def _follow_health(self, worker: Worker) -> bool:
        """Follow the worker's health until it is lost; say whether it was ever found."""
        try:
            worker.introduce(
                await worker.facts.GetModel(
                    worker_pb2.GetModelRequest(), timeout=self._settings.probe_timeout_s
                )
            )
        except grpc.aio.AioRpcError as error:
            log.debug("worker at %s does not answer: %s", worker.address, error.code())
            return False
        # Before its first stream: admission goes by what it says of its slots.
        await self._load_watch.ask(worker)
        worker.doubted.clear()
        watch = worker.health.Watch(  # type: ignore[attr-defined]  # its stubs lack Watch
            health_pb2.HealthCheckRequest(service=_HEALTH_SERVICE)
        )
        listening = asyncio.ensure_future(self._listen(worker, watch))
        doubt = asyncio.ensure_future(worker.doubted.wait())
        try:
            # A worker that hangs stays healthy by its last word: ask it again.
            await asyncio.wait((listening, doubt), return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
            doubt.cancel()
            watch.cancel()
            await asyncio.gather(listening, doubt, return_exceptions=True)
        return True

    async def _listen(self, worker: Worker, watch: Any) -> None:
        """Take in what a health watch says until it ends."""
        try:
            async for answer in watch:
                serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                self._set_state(worker, State.READY if serving else State.UNHEALTHY)
                self._note_contact(worker.address)
        except grpc.aio.AioRpcError as error:
            log.warning("worker lost: %s", error.code(), extra={"worker": worker.name})

    def _set_state(self, worker: Worker, state: State) -> None:
        if worker.state is not state:
            log.info("worker is %s", state.value, extra={"worker": worker.name})
            worker.state = state
        self._index()

    def _note_contact(self, address: str) -> None:
        self._contacted.add(address)
        if self._contacted >= self._workers.keys():
            self._first_contact.set()

    def _index(self) -> None:
        """Say again which workers are ready for which model.

        Where one model's workers differ (a rolling change of checkpoint), the
        kind that most of them have is the one requests are keyed and sent to.
        """
        ready: defaultdict[ServedModel, list[Worker]] = defaultdict(list)
        for worker in self._workers.values():
            if worker.model is not None and worker.is_ready:
                ready[worker.model].append(worker)
        self._ready = dict(ready)
        self._changed.set()
        self._changed = asyncio.Event()
        for model in sorted(ready, key=lambda m: (len(ready[m]), m.revision, m.engine_build)):
            self._models[model.name] = model
