"""One choice whose engine merges what nobody has taken: from joining its batch to leaving it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from inference_svc.choice import Choice
from inference_svc.engine import GenerationRequest, TokenDelta
from inference_svc.engines.pulled_tokens import UnreadTokens, WatchedTokens
from inference_svc.engines.sequence_stream import Step
from sidecache.errors import SidecacheError


class Outputs(Protocol):
    """What one sequence has given and nobody has taken yet."""

    def take(self) -> Any | None:
        """All of it as one output; None if there is nothing. Raises what ended the sequence."""

    async def abort(self) -> None:
        """Leave the batch, unless the engine has ended the sequence."""


class MergingBatch(Protocol):
    """What a sequence needs of its engine."""

    async def add(
        self,
        request: GenerationRequest,
        prompt: list[int],
        done: int,
        seed: int,
        tell: Callable[[bool], None],
    ) -> Outputs:
        """One sequence joins; ``tell`` is called for each output, with True for the last."""

    def read(self, output: Any, wanted: int | None) -> Step:
        """What an output says.

        Raises:
            EngineFailed: the engine gave the sequence up.
        """

    def failed(self, error: Exception) -> SidecacheError:
        """What the engine raised, as one of our errors."""


class SequenceListener(Protocol):
    """The stream that a sequence is part of. It is called inside the engine: it never raises."""

    def heard(self, *, ended: bool) -> None:
        """Something may be taken; with ``ended`` nothing more will come of this sequence."""

    def failed(self, error: Exception) -> None:
        """The engine raised this."""

    def left(self) -> None:
        """The sequence is out of the batch, or never joined it; told once."""


class PulledSequence:
    """One choice in an engine's batch.

    Attributes:
        cached_tokens: how much of the prompt was in the KV cache; None: not known yet.
    """

    def __init__(
        self,
        request: GenerationRequest,
        choice: Choice,
        batch: MergingBatch,
        listener: SequenceListener,
    ) -> None:
        self.cached_tokens: int | None = None
        self._request = request
        self._choice = choice
        self._batch = batch
        self._listener = listener
        self._watched = bool(request.stop)
        self._tokens: WatchedTokens | UnreadTokens = (
            WatchedTokens(choice) if self._watched else UnreadTokens(choice)
        )
        self._outputs: Outputs | None = None
        self._joining: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._is_out = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will come; what there is can still be taken."""
        return self._is_out or self._leaving is not None

    def join(self, prompt: list[int], seed: int) -> None:
        """Ask the engine to begin, unless the sequence was left before."""
        if not self.ended:
            self._joining = asyncio.create_task(self._add(prompt, seed))

    def has_some(self) -> bool:
        """Whether there is something to cut from, fetched now if need be."""
        if not self._tokens:
            self._fetch()
        return bool(self._tokens)

    def cut(self, max_tokens: int) -> TokenDelta:
        """The first tokens of what there is; only after :meth:`has_some`."""
        return self._tokens.cut(max_tokens)

    def leave(self) -> None:
        """Take the sequence out of the batch, if it is in it."""
        if self._joining is None:
            self._be_out()
        elif not self.ended:
            self._leaving = asyncio.create_task(self._abort(self._joining))

    async def aclose(self) -> None:
        """Leave the batch. Returns once the engine was told."""
        self.leave()
        if self._leaving is not None:
            await asyncio.wait((self._leaving,))

    async def _add(self, prompt: list[int], seed: int) -> None:
        done = self._choice.num_tokens
        try:
            self._outputs = await self._batch.add(self._request, prompt, done, seed, self._hear)
        except Exception as error:  # noqa: BLE001 - raised again where the stream is read
            self._listener.failed(error)
        else:
            if self._watched:
                self._watch()  # what the engine gave before we had its outputs

    def _hear(self, last: bool) -> None:
        """An output came."""
        if self._leaving is not None:
            return
        if last:
            self._be_out()
        if self._watched:
            self._watch()
        else:
            self._listener.heard(ended=last)

    def _watch(self) -> None:
        """Read what has come; with a stop string the sequence leaves the batch at once."""
        self._fetch()
        if self._choice.finished is not None:
            self.leave()
        self._listener.heard(ended=self.ended)

    def _fetch(self) -> None:
        if self._outputs is None or self._leaving is not None:
            return
        try:
            output = self._outputs.take()
            if output is not None:
                step = self._batch.read(output, self._request.logprobs)
                self._tokens.put(step)
                if self.cached_tokens is None:
                    self.cached_tokens = step.cached_tokens
        except Exception as error:  # noqa: BLE001 - raised again where the stream is read
            self._listener.failed(error)

    async def _abort(self, joining: asyncio.Task[None]) -> None:
        """A sequence that is being added can only be aborted once it was."""
        if not joining.done():
            await asyncio.wait((joining,))
        if self._outputs is not None:
            with suppress(Exception):  # a dead engine is told of elsewhere
                await self._outputs.abort()
        self._be_out()

    def _be_out(self) -> None:
        if not self._is_out:
            self._is_out = True
            self._listener.left()
