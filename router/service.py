"""THE REQUEST PATH. One generation, from the door to the last token."""

from collections.abc import Callable
from typing import Any

import grpc

from router.account import Accounts
from router.admission import Admission
from router.auditor import Auditor
from router.cache_client import Cache, Hit, Miss
from router.cache_desk import CacheDesk
from router.door import Door
from router.pool import WorkerPool
from router.relay import Relay
from router.replay import replay
from router.settings import LimitSettings
from router.tape import Tape
from sidecache.errors import NotCached, Unsupported, from_rpc_error
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Answers prompts: from the cache if it knows, else from a worker."""

    def __init__(
        self,
        door: Door,
        admission: Admission,
        cache: Cache,
        desk: CacheDesk,
        relay: Relay,
        pool: WorkerPool,
        accounts: Accounts,
        limits: LimitSettings,
        max_answer_bytes: int,
        clock: Callable[[], float],
        auditor: Auditor,
    ) -> None:
        self._door = door
        self._admission = admission
        self._cache = cache
        self._desk = desk
        self._relay = relay
        self._pool = pool
        self._accounts = accounts
        self._limits = limits
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._auditor = auditor

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Answer one prompt: from the cache if it knows, else from a worker."""
        ticket = self._door.open(request, context)
        with self._admission.admit(ticket.tenant), self._accounts.open(ticket) as account:
            outcome = await self._cache.lookup(ticket)  # a sick cache is a Miss
            account.looked_up(outcome)
            match outcome:
                case Hit():
                    await replay(outcome, ticket, context, self._limits.reader_stall_s)
                    self._auditor.audit_soon(ticket, outcome)
                case Miss() if ticket.only_if_cached:
                    raise NotCached("no stored answer, and only-if-cached was asked for")
                case Miss():
                    tape = account.follow(Tape(ticket, self._max_answer_bytes, self._clock))
                    worker = await self._relay.stream(ticket, tape, context, outcome.prefix)
                    answer = tape.answer(worker.name, ticket.model.revision)
                    self._cache.store_soon(ticket, answer)  # whole answers only

    async def Attach(self, request: pb.AttachRequest, context: Context) -> None:
        self._door.identify(context)
        raise Unsupported("this release keeps no detached streams: send the request again")

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        self._door.identify(context)
        default = self._pool.default_model()
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=model.name,
                    revision=model.revision,
                    context_length=model.context_length,
                    engine=model.engine,
                    is_default=model.name == default,
                    ready_workers=ready,
                )
                for model, ready in self._pool.models()
            ]
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        model = self._door.open_tokenize(request, context)
        with self._pool.lease(model) as lease:
            try:
                return await lease.worker.inference.Tokenize(
                    request, timeout=context.time_remaining()
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

    async def ReportWrongAnswer(
        self, request: pb.ReportWrongAnswerRequest, context: Context
    ) -> pb.ReportWrongAnswerResponse:
        principal = self._door.identify(context)
        await self._desk.report_wrong(principal.tenant, request.cache_entry_id)
        return pb.ReportWrongAnswerResponse()
