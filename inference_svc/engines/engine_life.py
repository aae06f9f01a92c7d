"""Whether an engine lives, when it last said so, and who must hear of its death: its streams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from inference_svc.engine import EngineLoad
from inference_svc.slots import Slots
from sidecache.errors import EngineFailed, SidecacheError


class LivingStream(Protocol):
    """What is told of the engine's end."""

    def end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""

    async def aclose(self) -> None:
        """Leave the batch. Returns once the engine was told."""


class EngineLife:
    """From :meth:`begin` in an engine's ``load`` to :meth:`die`; used on one event loop.

    Args:
        slots: what runs and waits; an engine with nothing to do is not silent.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._streams: set[LivingStream] = set()
        self._last_sign = 0.0
        self._failure: asyncio.Future[EngineFailed] | None = None

    def begin(self) -> None:
        """From now on requests may come, and a failure be waited for."""
        self._failure = asyncio.get_running_loop().create_future()

    def check(self) -> None:
        """Raise EngineFailed if the engine was not loaded, or has died."""
        failure = self._begun()
        if failure.done():
            raise EngineFailed(failure.result().text)

    def die(self, failure: EngineFailed) -> EngineFailed:
        """Every running stream learns of it; later ones are refused.

        Returns:
            Why the engine died, which is the first reason it was given.
        """
        if self._failure is not None:
            if not self._failure.done():
                self._failure.set_result(failure)
            failure = self._failure.result()
        for stream in list(self._streams):
            stream.end(EngineFailed(failure.text))
        return EngineFailed(failure.text)

    async def wait_failed(self) -> EngineFailed:
        """Return only when the engine has died, with the reason."""
        return await asyncio.shield(self._begun())

    @asynccontextmanager
    async def running(self, stream: LivingStream) -> AsyncIterator[None]:
        """The stream is one of the engine's until the block is left, and is closed then."""
        if not self._streams:
            self.show_sign()
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            await stream.aclose()

    async def close_streams(self) -> None:
        """Return once every stream has left the batch."""
        for stream in list(self._streams):
            await stream.aclose()

    def show_sign(self) -> None:
        """The engine has said something."""
        self._last_sign = asyncio.get_running_loop().time()

    @property
    def last_sign(self) -> float:
        """When it last said something, of the loop's clock."""
        return self._last_sign

    def silent_s(self) -> float:
        """Seconds since a busy engine said something; 0 when it has nothing to do."""
        if not self._slots.running:
            return 0.0
        return asyncio.get_running_loop().time() - self._last_sign

    def load_figures(self) -> EngineLoad:
        """What the slots say."""
        return EngineLoad(
            running_sequences=self._slots.running,
            waiting_sequences=self._slots.waiting,
            max_sequences=self._slots.max_sequences,
            waiting_prompt_tokens=self._slots.waiting_prompt_tokens,
        )

    def _begun(self) -> asyncio.Future[EngineFailed]:
        if self._failure is None:
            raise EngineFailed("the engine was not loaded")
        return self._failure
