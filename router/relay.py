"""A miss: the stream of a worker, passed on token by token, and on at the next if it is lost.

Before the first token another worker may take over unseen. After it, the next worker
goes on from the very next token where that is exact; `migrated` says so. What cannot be
continued ends with ABORTED.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, Protocol

import grpc

from observability.metrics.router import RoutingMetrics
from router.attempts import Attempts
from router.continuation import continued
from router.hedging import Hedging
from router.hint_account import account
from router.passage import Passage
from router.pool import WorkerPool
from router.prefix import PrefixHint
from router.prompt import RoutedPrompt
from router.recovery import Recovery
from router.rival import Rival
from router.settings import LimitSettings, RoutingSettings
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import (
    BrokenInvariant,
    Cancelled,
    EngineFailed,
    ModelNotFound,
    Overloaded,
    SidecacheError,
    Unavailable,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb

# gRPC's own words for a connection that went down under a call.
_CONNECTION_LOST = (Unavailable, Cancelled)

Events = grpc.aio.UnaryStreamCall[Any, pb.GenerateResponse]
Ask = Callable[[Passage], Events]


class Reader(Protocol):
    """Who gets the stream: a call's context, or whoever else takes messages."""

    async def write(self, message: pb.GenerateResponse, /) -> None:
        """Send one message."""
        ...


class Relay:
    """Streams answers from leased workers to clients.

    Args:
        recovery: what becomes of the streams of lost workers, and of the workers.
        hedging: when a second worker begins beside a late one; None: never.
    """

    def __init__(
        self,
        pool: WorkerPool,
        limits: LimitSettings,
        routing: RoutingSettings,
        recovery: Recovery,
        metrics: RoutingMetrics,
        hedging: Hedging | None = None,
    ) -> None:
        self._hedging = hedging
        self._metrics = metrics
        self._pool = pool
        self._limits = limits
        self._routing = routing
        self._recovery = recovery

    def reconfigure(self, limits: LimitSettings, routing: RoutingSettings) -> None:
        """Take new settings; streams under way go on by theirs."""
        self._limits, self._routing = limits, routing

    async def stream(
        self,
        ticket: Ticket,
        tape: Tape,
        context: Reader,
        hint: PrefixHint | None = None,
        *,
        to_idlest: bool = False,
        timeout_s: float | None = None,
    ) -> Worker:
        """Pass one whole generation on, and return the worker that ended it.

        Args:
            ticket: what to generate.
            tape: follows the stream.
            context: gets it.
            hint: what the sidecar knows of the prompt.
            to_idlest: whatever the policy, to the worker with the fewest streams.
            timeout_s: bound of the generation; None: what is left of the ticket's.

        Raises:
            NoHealthyWorker: nothing was sent; nobody could take the request.
            Overloaded: nothing was sent; every worker's queue was full.
            StreamInterrupted: tokens were sent and the worker was lost.
            SidecacheError: what the worker itself found wrong with the request.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (ticket.timeout_s if timeout_s is None else timeout_s)
        prompt = RoutedPrompt(ticket, hint)
        attempts = Attempts(self._pool, self._limits, self._recovery, ticket, tape)
        ask = partial(self._ask, hint=hint, deadline=deadline)
        rival = nullcontext() if to_idlest else self._rival(attempts, prompt, ask)
        with rival as attempts.rival:
            while True:
                await attempts.may_go_on()
                with attempts.lease(None if to_idlest else prompt) as passage:
                    try:
                        call = passage.call or ask(passage)
                        await self._follow(call, passage, context, attempts)
                    except (Unavailable, Overloaded) as error:
                        failure = error
                        self._recovery.lost(passage, error)
                    else:
                        self._recovery.completed(passage)
                        usage = tape.finished[0].usage
                        self._pool.learn(ticket.model, prompt, usage.prompt_tokens)
                        account(
                            self._metrics, hint, passage.worker, usage, token_ids=passage.has_ids
                        )
                        if attempts.rival is not None:
                            attempts.rival.settle(passage, usage.prompt_tokens)
                        return passage.worker
                await attempts.failed(failure)

    def _rival(
        self, attempts: Attempts, prompt: RoutedPrompt, ask: Ask
    ) -> AbstractContextManager[Rival | None]:
        """A second worker for the time before the first token, where that is wanted."""
        if self._hedging is None:
            return nullcontext()
        return Rival(self._hedging, partial(self._begin_beside, attempts, prompt, ask))

    async def _begin_beside(
        self, attempts: Attempts, prompt: RoutedPrompt, ask: Ask, stack: ExitStack
    ) -> Passage:
        """Ask one more worker, and return when it has something for the client.

        Raises:
            Unavailable, Overloaded: there is none, or it failed or refused.
        """
        passage = stack.enter_context(attempts.lease_beside(prompt))
        call = ask(passage)
        stack.callback(call.cancel)
        guard = passage.guard = self._guard(passage.tape, attempts)
        try:
            with guard:
                async for event in call:
                    guard.has_answered()
                    guard.waits_for_worker()
                    passage.worker.heard()
                    if event.HasField("started"):
                        passage.lease.answered()
                    passage.held = [one for one in passage.held if one.HasField("started")]
                    passage.held.append(event)
                    if event.HasField("delta") or event.HasField("finished"):
                        return passage
        except grpc.aio.AioRpcError as error:
            raise self._blame(passage, error) from error
        raise EngineFailed(f"worker {passage.worker.name} ended its stream too early")

    def _ask(self, passage: Passage, hint: PrefixHint | None, deadline: float) -> Events:
        """Send a worker the request, or what is left of it."""
        ticket = passage.ticket
        request = self._for_worker(passage.worker, ticket, hint)
        passage.has_ids = request is not ticket.request
        timeout_s = deadline - asyncio.get_running_loop().time()
        passage.call = passage.worker.inference.Generate(
            continued(request, passage.tape),
            timeout=max(0.0, timeout_s),
            metadata=(("x-request-id", ticket.request_id),),
        )
        return passage.call

    async def _follow(
        self, call: Events, passage: Passage, reader: Reader, attempts: Attempts
    ) -> None:
        """Pass on one worker's events until its stream has ended well."""
        worker, tape = passage.worker, passage.tape
        guard = passage.guard = self._guard(tape, attempts)
        try:
            with attempts.standing_by(passage), guard:
                for event in passage.held:
                    await self._pass_on(event, passage, guard, reader)
                async for event in call:
                    await self._pass_on(event, passage, guard, reader)
        except grpc.aio.AioRpcError as error:
            # With the last `finished` the client has everything: what the worker said of its
            # own end, or did not live to say, changes nothing.
            if not tape.is_complete:
                raise self._blame(passage, error) from error
        except Unavailable:
            if not tape.is_complete:
                raise
        except BrokenInvariant as error:
            # What the client has is right; only this worker is not.
            self._pool.suspect(worker)
            raise EngineFailed(f"worker {worker.name}: {error}") from error
        finally:
            # Frees the engine's slot whatever ended the stream here; a no-op at its own end.
            call.cancel()
            if guard.worker_stalled:
                # One stream may be stuck while others flow; a worker hangs with all of them.
                quiet_s = self._limits.token_silence_s / 2
                passage.worker_hangs = passage.worker_hangs or worker.is_quiet(quiet_s)
                self._pool.suspect(worker)
        if not tape.is_complete:
            raise EngineFailed(f"worker {worker.name} ended its stream too early")

    async def _pass_on(
        self, event: pb.GenerateResponse, passage: Passage, guard: StallGuard, reader: Reader
    ) -> None:
        guard.has_answered()
        if event.HasField("delta"):
            passage.heard_tokens()
            guard.has_tokens()
        if passage.takes(event):
            guard.waits_for_reader()
            await reader.write(event)
        guard.waits_for_worker()
        self._recovery.heard(passage)

    def _guard(self, tape: Tape, attempts: Attempts) -> StallGuard:
        """Patience for a worker's first word, for its first token and between tokens."""
        limits = self._limits
        between_tokens_s = limits.worker_silence_s if attempts.why_not else limits.token_silence_s
        # The client of a stream that goes on waits in the middle of a sentence.
        answer_s = limits.token_silence_s if tape.tokens else limits.worker_answer_s
        return StallGuard(
            limits.worker_silence_s, limits.reader_stall_s, between_tokens_s, answer_s
        )

    def _for_worker(
        self, worker: Worker, ticket: Ticket, hint: PrefixHint | None
    ) -> pb.GenerateRequest:
        """The request, with the prompt's token ids where the worker would make the same."""
        request = ticket.request
        if hint is None or not self._routing.forward_token_ids:
            return request
        if not fits(hint, worker, request):
            return request
        sent = pb.GenerateRequest()
        sent.CopyFrom(request)
        sent.token_ids.ids.extend(hint.prompt_token_ids)
        return sent

    def _blame(self, passage: Passage, error: grpc.aio.AioRpcError) -> SidecacheError:
        """What a worker's failed call means for the request, and for the worker."""
        failure, worker = from_rpc_error(error), passage.worker
        if isinstance(failure, ModelNotFound):
            # It was restarted with another model since it was chosen.
            self._pool.suspect(worker)
            return EngineFailed(f"worker {worker.name}: {failure}")
        passage.worker_is_lost = isinstance(failure, EngineFailed)
        if type(failure) in _CONNECTION_LOST:
            # Our own cancel never comes here: it is an asyncio.CancelledError.
            passage.worker_is_lost = True
            self._pool.suspect(worker)
            return EngineFailed(f"worker {worker.name}: {failure}")
        return failure


def fits(hint: PrefixHint, worker: Worker, request: pb.GenerateRequest) -> bool:
    """Whether the hint's token ids are what the worker itself would make of the prompt."""
    kind = request.WhichOneof("prompt")
    if not hint.prompt_token_ids or kind == "token_ids" or not hint.tokenizer_fingerprint:
        return False
    if request.HasField("retention") and request.retention.leading_messages:
        # The worker has to see where the messages end.
        return False
    if hint.tokenizer_fingerprint != worker.tokenizer_fingerprint:
        return False
    same_template = hint.chat_template_fingerprint == worker.chat_template_fingerprint
    return kind == "text" or (same_template and bool(hint.chat_template_fingerprint))
