"""A miss: the stream of a worker, passed on token by token.

Before the first token another worker may take over unseen, or, once `started`
was sent, with a `migrated` at offset 0. After it, what broke cannot be told from
what was lost, and the stream ends with ABORTED.
"""

import asyncio
from typing import Protocol

import grpc

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
    EngineFailed,
    NoHealthyWorker,
    Overloaded,
    SidecacheError,
    StreamInterrupted,
    Unavailable,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb


class Reader(Protocol):
    """Who gets the stream: a call's context, or whoever else takes messages."""

    async def write(self, message: pb.GenerateResponse, /) -> None:
        """Send one message."""
        ...


# Workers tried for one request, the first one included.
_MAX_ATTEMPTS = 3


class Relay:
    """Streams answers from leased workers to clients."""

    def __init__(self, pool: WorkerPool, limits: LimitSettings, routing: RoutingSettings) -> None:
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
        tried: list[Worker] = []
        failure: SidecacheError | None = None
        prompt = RoutedPrompt(ticket, hint)
        while len(tried) < _MAX_ATTEMPTS:
            try:
                with self._pool.lease(ticket.model, tried, None if to_idlest else prompt) as lease:
                    worker = lease.worker
                    if tape.started:
                        await context.write(_migrated(tried[-1], worker))
                    tried.append(worker)
                    await self._follow(lease, prompt, ticket, tape, context, deadline - loop.time())
                    self._pool.learn(ticket.model, prompt, tape.finished[0].usage.prompt_tokens)
                    return worker
            except NoHealthyWorker as error:
                raise failure or error from error
            except (Unavailable, Overloaded) as error:
                if tape.tokens:
                    raise StreamInterrupted(
                        f"the worker was lost after {tape.tokens} tokens: {error}"
                    ) from error
                failure = error
        raise failure or NoHealthyWorker(f"no worker of {ticket.model.name} is ready")

    async def _follow(
        self,
        lease: Lease,
        prompt: RoutedPrompt,
        ticket: Ticket,
        tape: Tape,
        context: Reader,
        timeout_s: float,
    ) -> None:
        """Pass on one worker's events until its stream has ended well."""
        worker = lease.worker
        call = worker.inference.Generate(
            self._for_worker(worker, ticket, prompt.hint),
            timeout=max(0.0, timeout_s),
            metadata=(("x-request-id", ticket.request_id),),
        )
        limits = self._limits
        try:
            with StallGuard(limits.worker_silence_s, limits.reader_stall_s) as guard:
                async for event in call:
                    if event.HasField("delta"):
                        lease.first_token()
                    if self._passes(event, ticket, tape):
                        guard.waits_for_reader()
                        await context.write(event)
                        guard.waits_for_worker()
        except grpc.aio.AioRpcError as error:
            raise self._blame(worker, error) from error
        finally:
            # Frees the engine's slot whatever ended the stream here; a no-op at its own end.
            call.cancel()
        if not tape.is_complete:
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

    def _passes(self, event: pb.GenerateResponse, ticket: Ticket, tape: Tape) -> bool:
        """Note what a message says; whether anything of it is for the client."""
        passes = True
        if event.HasField("started"):
            if event.started.model_revision != ticket.model.revision:
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
        return passes

    def _blame(self, worker: Worker, error: grpc.aio.AioRpcError) -> SidecacheError:
        """What a worker's failed call means for the request, and for the worker."""
        failure = from_rpc_error(error)
        if type(failure) is Unavailable:
            # gRPC's own word, not the worker's: the connection is gone.
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


def _migrated(old: Worker, new: Worker) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        migrated=pb.Migrated(from_worker=old.name, to_worker=new.name, offset=0)
    )
