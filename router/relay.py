"""A miss: the stream of a worker, passed on token by token, and on at the next if it is lost.

Before the first token another worker may take over unseen. After it, the next worker
goes on from the very next token where that is exact; `migrated` says so. What cannot be
continued ends with ABORTED.
"""

import asyncio
from typing import Protocol

import grpc

from observability.metrics import RoutingMetrics
from router.attempts import Attempts
from router.continuation import continued
from router.hint_account import account
from router.lease import Lease
from router.pool import WorkerPool
from router.prefix import PrefixHint
from router.prompt import RoutedPrompt
from router.settings import LimitSettings, RoutingSettings
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import (
    BrokenInvariant,
    Cancelled,
    EngineFailed,
    Overloaded,
    SidecacheError,
    Unavailable,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb

# gRPC's own words for a connection that went down under a call.
_CONNECTION_LOST = (Unavailable, Cancelled)


class Reader(Protocol):
    """Who gets the stream: a call's context, or whoever else takes messages."""

    async def write(self, message: pb.GenerateResponse, /) -> None:
        """Send one message."""
        ...


class Relay:
    """Streams answers from leased workers to clients."""

    def __init__(
        self,
        pool: WorkerPool,
        limits: LimitSettings,
        routing: RoutingSettings,
        metrics: RoutingMetrics,
    ) -> None:
        self._metrics = metrics
        self._pool = pool
        self._limits = limits
        self._routing = routing

    async def stream(
        self,
        ticket: Ticket,
        tape: Tape,
        context: Reader,
        hint: PrefixHint | None = None,
        *,
        to_idlest: bool = False,
    ) -> Worker:
        """Pass one whole generation on, and return the worker that ended it.

        Args:
            ticket: what to generate.
            tape: follows the stream.
            context: gets it.
            hint: what the sidecar knows of the prompt.
            to_idlest: whatever the policy, to the worker with the fewest streams.

        Raises:
            NoHealthyWorker: nothing was sent; nobody could take the request.
            Overloaded: nothing was sent; every worker's queue was full.
            StreamInterrupted: tokens were sent and the worker was lost.
            SidecacheError: what the worker itself found wrong with the request.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ticket.timeout_s
        prompt = RoutedPrompt(ticket, hint)
        attempts = Attempts(self._pool, self._limits, ticket, tape)
        while True:
            with attempts.lease(None if to_idlest else prompt) as lease:
                try:
                    passage = Passage(lease, ticket, tape, attempts.move_to(lease.worker))
                    request = self._for_worker(lease.worker, ticket, hint)
                    sent = continued(request, tape)
                    await self._follow(passage, sent, context, attempts, deadline - loop.time())
                except (Unavailable, Overloaded) as error:
                    failure = error
                else:
                    usage = tape.finished[0].usage
                    self._pool.learn(ticket.model, prompt, usage.prompt_tokens)
                    has_ids = request is not ticket.request
                    account(self._metrics, hint, lease.worker, usage, token_ids=has_ids)
                    return lease.worker
            await attempts.failed(failure)

    async def _follow(
        self,
        passage: "Passage",
        request: pb.GenerateRequest,
        reader: Reader,
        attempts: Attempts,
        timeout_s: float,
    ) -> None:
        """Pass on one worker's events until its stream has ended well."""
        limits, worker = self._limits, passage.worker
        between_tokens_s = limits.worker_silence_s if attempts.why_not else limits.token_silence_s
        call = worker.inference.Generate(
            request,
            timeout=max(0.0, timeout_s),
            metadata=(("x-request-id", passage.ticket.request_id),),
        )
        guard = StallGuard(limits.worker_silence_s, limits.reader_stall_s, between_tokens_s)
        try:
            with guard:
                async for event in call:
                    if event.HasField("delta"):
                        passage.lease.first_token()
                        guard.has_tokens()
                    if passage.takes(event):
                        guard.waits_for_reader()
                        await reader.write(event)
                        guard.waits_for_worker()
        except grpc.aio.AioRpcError as error:
            raise self._blame(worker, error) from error
        except BrokenInvariant as error:
            # What the client has is right; only this worker is not.
            self._pool.suspect(worker)
            raise EngineFailed(f"worker {worker.name}: {error}") from error
        finally:
            # Frees the engine's slot whatever ended the stream here; a no-op at its own end.
            call.cancel()
            if guard.worker_stalled:
                self._pool.suspect(worker)
        if not passage.tape.is_complete:
            raise EngineFailed(f"worker {worker.name} ended its stream too early")

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

    def _blame(self, worker: Worker, error: grpc.aio.AioRpcError) -> SidecacheError:
        """What a worker's failed call means for the request, and for the worker."""
        failure = from_rpc_error(error)
        if type(failure) in _CONNECTION_LOST:
            # Our own cancel never comes here: it is an asyncio.CancelledError.
            self._pool.suspect(worker)
            return EngineFailed(f"worker {worker.name}: {failure}")
        return failure


class Passage:
    """One worker's part of a stream, on its way to the client.

    Args:
        lease: of the worker.
        ticket: what was asked for.
        tape: of the whole stream.
        move: what the client is to be told with the first event; None: nothing.
    """

    def __init__(self, lease: Lease, ticket: Ticket, tape: Tape, move: pb.Migrated | None) -> None:
        self.lease = lease
        self.worker = lease.worker
        self.ticket = ticket
        self.tape = tape
        self._move = move

    def takes(self, event: pb.GenerateResponse) -> bool:
        """Note what a message says; whether anything of it is for the client.

        Raises:
            EngineFailed: another checkpoint answers than was asked for.
            BrokenInvariant: the worker lost, repeated or reordered tokens.
        """
        tape, passes = self.tape, True
        if event.HasField("started"):
            if event.started.model_revision != self.ticket.model.revision:
                # It was restarted with another checkpoint since it was chosen.
                raise EngineFailed(f"worker {event.started.worker} serves another revision")
            if tape.started:
                event.ClearField("started")
                passes = bool(event.ListFields())
            tape.started = True
        if event.HasField("delta"):
            tape.take(event.delta)
        if event.HasField("finished"):
            tape.finish(event.finished)
        if passes and self._move is not None:
            event.migrated.CopyFrom(self._move)
            self._move = None
        return passes


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
