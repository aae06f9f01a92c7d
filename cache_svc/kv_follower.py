"""Follows one worker: who it is, what its KV cache holds, and what to do when it is lost."""

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from cache_svc.follow_tally import FollowState, FollowTally
from cache_svc.followed_models import FollowedModels, ModelIdentity, UnusableModel
from cache_svc.kv_stream import Fault, KvStream, OutOfStep
from cache_svc.prefix_index import TooManyBlocks
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.tokenizers_kept import KeptTokenizers
from sidecache.v1 import cache_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

Connect = Callable[[str], grpc.aio.Channel]


class KvFollower:
    """One worker's part of the index, kept true for as long as :meth:`run` runs.

    Args:
        address: where it is; also its name in the index.
        whole: counts what all followers together have met.
        chance: spreads the waits of many followers.

    Attributes:
        state: how it is followed now.
        changes_behind: made by the worker beyond the one that was applied last.
    """

    def __init__(
        self,
        address: str,
        connect: Connect,
        models: FollowedModels,
        tokenizers: KeptTokenizers,
        settings: PrefixSettings,
        whole: FollowTally,
        chance: random.Random,
    ) -> None:
        self.address = address
        self.state = FollowState.CONNECTING
        self._connect = connect
        self._models = models
        self._tokenizers = tokenizers
        self._settings = settings
        self._tally = FollowTally(whole)
        self._chance = chance
        self._backoff_s = settings.min_backoff_s
        self._epoch = ""
        self._next_sequence = 0
        self._lost_at_s: float | None = None
        self._heard_at_s: float | None = None
        self.changes_behind = 0

    async def run(self) -> None:
        """Follow until cancelled, then forget the worker."""
        channel = self._connect(self.address)
        try:
            while True:
                wait_s = await self._follow(worker_pb2_grpc.WorkerServiceStub(channel))
                await self._wait(wait_s * self._chance.uniform(0.5, 1.5))
        finally:
            self._models.leave(self.address)
            # Whoever runs it again has nothing that changes alone could be applied to.
            self._next_sequence = 0
            await channel.close(grace=None)

    def describe(self) -> cache_pb2.FollowedWorker:
        """How it is followed, and how far, for an operator."""
        model = self._models.of_worker(self.address)
        described = cache_pb2.FollowedWorker(
            address=self.address,
            state=self.state.value,
            events=self._tally.blocks,
            resyncs=self._tally.resyncs.total(),
            changes_behind=self.changes_behind,
        )
        if model is not None:
            described.model = model.identity.name
            described.blocks = model.index.blocks(self.address)
            described.max_blocks = model.index.limit_of(self.address)
        if self._heard_at_s is not None:
            silent_s = asyncio.get_running_loop().time() - self._heard_at_s
            described.silence.FromNanoseconds(int(silent_s * 1e9))
        return described

    async def _follow(self, worker: "worker_pb2_grpc.WorkerServiceAsyncStub") -> float:
        """Follow until something is wrong; seconds to wait before the next attempt."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            await self._introduce(worker)
            await self._subscribe(worker)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                # Its blocks are unknown; its tokenizer is of use all the same.
                self._without_events()
                return self._settings.unsupported_retry_s
            log.debug("worker at %s: %s", self.address, error.code())
        except OutOfStep as error:
            self._resync(error.fault)
        except TooManyBlocks:
            self._resync(Fault.TOO_MANY_BLOCKS)
        except UnusableModel as error:
            log.warning("worker at %s is not followed: %s", self.address, error)
            self._models.leave(self.address)
            self._without_events()
            return self._settings.unsupported_retry_s
        if loop.time() - started_s >= self._settings.settled_s:
            self._backoff_s = self._settings.min_backoff_s
        wait_s = self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self._settings.max_backoff_s)
        return wait_s

    async def _introduce(self, worker: "worker_pb2_grpc.WorkerServiceAsyncStub") -> None:
        """Learn what it serves and how much it can hold; a new epoch is a new worker."""
        timeout_s = self._settings.call_timeout_s
        model = await worker.GetModel(worker_pb2.GetModelRequest(), timeout=timeout_s)
        identity = ModelIdentity.of_worker(model)
        serves = self._models.of_worker(self.address)
        if model.epoch != self._epoch or (serves is not None and serves.identity != identity):
            self._models.leave(self.address)
            self._epoch, self._next_sequence = model.epoch, 0
        self._models.join(self.address, identity)
        await self._tokenizers.fetch(identity.fingerprints, worker, timeout_s)
        load = await worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=timeout_s)
        followed = self._models.of_worker(self.address)
        # None at all is what a worker says that does not know.
        if followed is not None and load.kv_blocks:
            followed.index.limit(self.address, load.kv_blocks)

    async def _subscribe(self, worker: "worker_pb2_grpc.WorkerServiceAsyncStub") -> None:
        model = self._models.of_worker(self.address)
        if model is None:
            return
        stream = KvStream(self.address, model, self._models, self._epoch, self._next_sequence)
        request = worker_pb2.SubscribeKvEventsRequest(
            epoch=self._epoch, start_sequence=self._next_sequence
        )
        call = worker.SubscribeKvEvents(request)
        loop = asyncio.get_running_loop()
        try:
            async for event in call:
                before = stream.applied
                await stream.apply(event)
                self._tally.took(stream.applied - before)
                self._heard_at_s = loop.time()
                self.changes_behind = max(0, event.latest_sequence - event.sequence)
                if stream.in_step:
                    self._in_step()
        finally:
            call.cancel()
            self._tally.heard_again(stream.repeated)
            # A snapshot that broke off is asked for anew.
            self._next_sequence = stream.next_sequence if stream.in_step else 0

    async def _wait(self, seconds: float) -> None:
        """Wait; a worker that stays away beyond its grace is forgotten meanwhile."""
        if self.state is FollowState.WITHOUT_EVENTS:
            await asyncio.sleep(seconds)
            return
        now_s = asyncio.get_running_loop().time()
        if self._lost_at_s is None:
            self._lost_at_s = now_s
            self.state = FollowState.CONNECTING
        left_s = max(0.0, self._lost_at_s + self._settings.lost_grace_s - now_s)
        if left_s <= seconds:
            await asyncio.sleep(left_s)
            self._lose()
        await asyncio.sleep(seconds - min(left_s, seconds))

    def _resync(self, fault: Fault) -> None:
        """What is known of it is not to be trusted any more."""
        self._tally.resynced(fault)
        self._drop_blocks()

    def _in_step(self) -> None:
        self.state = FollowState.FOLLOWING
        self._lost_at_s = None

    def _without_events(self) -> None:
        self.state = FollowState.WITHOUT_EVENTS
        self._drop_blocks()

    def _drop_blocks(self) -> None:
        """Only a snapshot says again what it holds."""
        self._next_sequence = 0
        model = self._models.of_worker(self.address)
        if model is not None:
            model.index.cleared(self.address)

    def _lose(self) -> None:
        self.state = FollowState.LOST
        self._next_sequence = 0
        self._models.leave(self.address)
