"""What the fake hands out: one request's output, and the streams that end on time-out."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from tests.fakes.tensorrt_llm.surface import Surface


class FakeCompletion:
    """One output sequence; see CompletionOutput."""

    def __init__(self) -> None:
        self.index = 0
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None
        self._told = 0

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._told :]

    @property
    def logprobs_diff(self) -> list[Any]:
        return self.logprobs[self._told :]

    def _take(self, token_ids: list[int], logprobs: list[Any], reason: str | None) -> None:
        self._told = len(self.token_ids)
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.finish_reason = reason


class FakeRequestOutput:
    """One request, to be read by one reader; see RequestOutput.

    Args:
        abort: tells the engine.
    """

    def __init__(self, request_id: int, prompt_token_ids: list[int], abort: Any) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.cached_tokens = 0
        self.finished = False
        self._completion = FakeCompletion()
        self._abort = abort
        self._aborted = False
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def outputs(self) -> list[FakeCompletion]:
        return [self._completion]

    def abort(self) -> None:
        self._aborted = True
        self._abort(self.request_id)

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> AsyncIterator["FakeRequestOutput"]:
        return self

    async def __anext__(self) -> "FakeRequestOutput":
        if self.finished:
            raise StopAsyncIteration
        response = await self._queue.get()
        if isinstance(response, Exception):
            self.finished = True
            raise response
        self._completion._take(response["ids"], response["logprobs"], response["reason"])
        self.cached_tokens = response["cached"]
        self.finished = response["reason"] is not None
        return self

    def _put(self, response: Any) -> None:
        """Called on the event loop."""
        self._queue.put_nowait(response)


class FakeIterationResult:
    """News of all iterations; see IterationResult.

    As in tensorrt_llm/executor/result.py it is one object for all listeners: when nothing
    came for the time-out it is done, and stays so until a prompt is submitted.
    """

    def __init__(self) -> None:
        self._done = False
        self._timeout: float | None = 2
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def set_timeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def mark_undone(self) -> None:
        self._done = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._done:
            raise StopAsyncIteration
        try:
            return await asyncio.wait_for(self._queue.get(), self._timeout)
        except TimeoutError:
            self._done = True
            raise StopAsyncIteration from None

    def _put(self, news: Any) -> None:
        """Called on the event loop."""
        self._queue.put_nowait(news)


class Deliveries:
    """Carries what the engine's thread says to the reader's event loop, in order."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def bind(self) -> None:
        """The running loop is the one."""
        self._loop = asyncio.get_running_loop()

    def send(self, batch: list[tuple[Any, Any]]) -> None:
        """Give each receiver its response."""
        if self._loop is not None and batch and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[Any, Any]]) -> None:
    for receiver, response in batch:
        receiver._put(response)


def check_members(surface: Surface) -> None:
    """The fake offers nothing that the real classes do not have.

    Raises:
        TypeError: names what is too much.
    """
    pairs = (
        (FakeCompletion(), "CompletionOutput"),
        (FakeRequestOutput(0, [], None), "GenerationResult"),
        (FakeIterationResult(), "IterationResult"),
    )
    for fake, name in pairs:
        entry = surface.entry(name)
        real = {*entry["fields"], *entry["methods"], *entry["properties"], *entry["attributes"]}
        too_much = {each for each in dir(fake) if not each.startswith("_")} - real
        if too_much:
            raise TypeError(f"the fake {name} has {sorted(too_much)}, the real one has not")
