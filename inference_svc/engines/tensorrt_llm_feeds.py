"""Listens to a TensorRT-LLM engine: its KV cache events and its statistics.

Both come from asynchronous iterators that end after a time without news, and in some
versions begin anew only once another prompt was submitted; so each is opened again and
again, and never in a busy loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from inference_svc.engines.tensorrt_llm_kv import KvTranslator

logger = logging.getLogger(__name__)


class EngineFeeds:
    """Runs the two loops and keeps what they said last.

    Args:
        llm: TensorRT-LLM's LLM.
        translator: takes the KV events; None: they are off.
        timeout_s: how long one listening may last without news.
        silence_s: prompts filled blocks and no event came for so long: the events are dead.
        alive: called whenever the engine said anything.

    Attributes:
        kv_cache_usage: share of KV blocks in use, 0 to 1; None until the engine has said.
        kv_blocks: how many there are; None until it has said.
        active_requests: in the engine's batch; None until it has said.
        queued_requests: waiting in the engine; None until it has said.
        kv_silent: KV events are configured and do not come (TensorRT-LLM issue 15522).
    """

    def __init__(
        self,
        llm: Any,
        translator: KvTranslator | None,
        *,
        timeout_s: float,
        silence_s: float,
        alive: Callable[[], None],
    ) -> None:
        self.kv_cache_usage: float | None = None
        self.kv_blocks: int | None = None
        self.active_requests: int | None = None
        self.queued_requests: int | None = None
        self.kv_silent = False
        self._llm = llm
        self._translator = translator
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._alive = alive
        self._prompted = asyncio.Event()
        self._expected_since: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    def start(self) -> None:
        """Begin to listen; before the first prompt the engine has nothing to listen to."""
        self._tasks = [asyncio.create_task(self._repeat(self._read_statistics))]
        if self._translator is not None:
            self._tasks.append(asyncio.create_task(self._repeat(self._read_kv_events)))

    async def aclose(self) -> None:
        """Stop listening. Safe to call twice."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    def prompted(self) -> None:
        """A prompt was submitted."""
        self._prompted.set()

    def filled(self, whole_blocks: int) -> None:
        """A prompt has filled so many blocks that were not cached: an event must follow."""
        if whole_blocks > 0 and self._expected_since is None:
            self._expected_since = asyncio.get_running_loop().time()

    async def _repeat(self, read: Callable[[], Awaitable[None]]) -> None:
        await self._prompted.wait()
        # asyncio.wait_for of Python 3.11, inside the library, may swallow a cancel.
        while not self._closing:
            self._prompted.clear()
            try:
                await read()
            except Exception as error:  # noqa: BLE001 - the engine's own, whatever it is
                # A request that fails tells more; what is read here is worth no death.
                logger.warning("listening to the engine failed: %r", error)
            self._check_silence()
            await self._pause()

    async def _pause(self) -> None:
        """Until the next prompt, or for as long as one listening lasts."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._closing else self._timeout_s):
                await self._prompted.wait()

    async def _read_kv_events(self) -> None:
        assert self._translator is not None  # noqa: S101 - for the type checker
        async for item in self._llm.get_kv_cache_events_async(timeout=self._timeout_s):
            self._alive()
            self._expected_since, self.kv_silent = None, False
            for event in item if isinstance(item, list) else [item]:
                self._translator.event(event)

    async def _read_statistics(self) -> None:
        async for item in self._llm.get_stats_async(timeout=self._timeout_s):
            self._alive()
            for statistics in item if isinstance(item, list) else [item]:
                self._note(statistics)

    def _note(self, statistics: Mapping[str, Any]) -> None:
        self.active_requests = statistics.get("numActiveRequests")
        self.queued_requests = statistics.get("numQueuedRequests")
        blocks = statistics.get("kvCacheStats") or {}
        if blocks.get("maxNumBlocks"):
            self.kv_blocks = int(blocks["maxNumBlocks"])
            self.kv_cache_usage = blocks["usedNumBlocks"] / blocks["maxNumBlocks"]

    def _check_silence(self) -> None:
        if self._translator is None or self._expected_since is None or self.kv_silent:
            return
        waited_s = asyncio.get_running_loop().time() - self._expected_since
        if waited_s > self._silence_s:
            self.kv_silent = True
            logger.error(
                "KV events are on, prompts filled blocks and no event came for %.0f s: requests "
                "are not routed by this worker's cache. See TensorRT-LLM issue 15522",
                waited_s,
            )
            self._translator.clear()
