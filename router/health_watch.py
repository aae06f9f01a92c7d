"""Keeps what is known of one worker true: who it is, and whether it is well."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from router.roster import Roster
from router.settings import PoolSettings
from router.worker import State, Worker
from sidecache.v1 import worker_pb2

log = logging.getLogger(__name__)

_HEALTH_SERVICE = "sidecache.v1.InferenceService"


class HealthWatch:
    """Follows workers' health, and finds them again when they were lost.

    Args:
        roster: is told of every change.
        settings: bounds and pauses.
        on_found: awaited for each worker that has introduced itself, before it gets a stream.
    """

    def __init__(
        self,
        roster: Roster,
        settings: PoolSettings,
        on_found: Callable[[Worker], Awaitable[None]],
    ) -> None:
        self._on_found = on_found
        self._roster = roster
        self._settings = settings

    async def follow(self, worker: Worker) -> None:
        """Keep one worker's state true until cancelled."""
        backoff_s = self._settings.min_backoff_s
        while True:
            try:
                if await self._follow_health(worker):
                    backoff_s = self._settings.min_backoff_s
            except Exception:
                # One worker's odd answer must not end the watch over the others.
                log.exception("watching a worker failed", extra={"worker": worker.name})
            self._roster.set_state(worker, State.UNHEALTHY)
            self._roster.note_contact(worker.address)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._settings.max_backoff_s)

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
        await self._on_found(worker)
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
                self._roster.set_state(worker, State.READY if serving else State.UNHEALTHY)
                self._roster.note_contact(worker.address)
        except grpc.aio.AioRpcError as error:
            log.warning("worker lost: %s", error.code(), extra={"worker": worker.name})
