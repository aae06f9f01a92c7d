"""THE REQUEST PATH. One generation, from the door to the last token."""

from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from router.account import Account, Accounts
from router.admission.gate import Admission
from router.auditor import Auditor
from router.cache_client import Cache, Hit, Miss
from router.cache_desk import CacheDesk
from router.door import Door
from router.flight_readers import Reattached
from router.flights import Flights
from router.held_flights import HeldFlights
from router.mesh import Mesh
from router.paraphrases import Paraphrases
from router.pool import WorkerPool
from router.relay import Reader, Relay
from router.replay import replay
from router.settings import LimitSettings
from router.speculation import OVERTAKEN, Speculation
from router.splits.shadow import Shadows
from router.splits.splits import Splits
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import NotCached, from_rpc_error
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
        flights: Flights,
        splits: Splits,
        shadows: Shadows,
        held: HeldFlights,
        speculation: Speculation | None = None,
        mesh: Mesh | None = None,
        paraphrases: Paraphrases | None = None,
    ) -> None:
        self._paraphrases = paraphrases
        self._splits = splits
        self._shadows = shadows
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
        self._flights = flights
        self._speculation = speculation
        self._mesh = mesh
        self._held = held

    def reconfigure(self, limits: LimitSettings) -> None:
        """Take new limits; calls under way go on by theirs."""
        self._limits = limits

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Answer one prompt: from the cache if it knows, else from a worker."""
        ticket = self._door.open(request, context)
        with (
            self._admission.admit(ticket, context.set_trailing_metadata),
            self._accounts.open(ticket) as account,
        ):
            if await self._read_along(ticket, account, context):
                return
            outcome = await self._look_up(ticket, account, context)  # a sick cache is a Miss
            match outcome:
                case None:
                    pass  # a worker had its first token before the cache had an answer
                case Hit():
                    await replay(outcome, ticket, context, self._limits.reader_stall_s)
                    self._auditor.audit_soon(ticket, outcome)
                case Miss() if ticket.only_if_cached:
                    raise NotCached("no stored answer, and only-if-cached was asked for")
                case Miss():
                    if not await self._read_along(ticket, account, context, outcome):
                        await self._generate(ticket, outcome, account, context)

    async def _look_up(
        self, ticket: Ticket, account: Account, context: Context
    ) -> Hit | Miss | None:
        """Ask the cache. None: that took long, and a worker has answered meanwhile."""
        outcome: Hit | Miss | None
        lookup = self._cache.lookup(ticket)
        if self._speculation is not None and not ticket.only_if_cached:
            outcome = await self._speculation.race(
                lookup,
                lambda reader: self._generate(ticket, OVERTAKEN, account, reader),
                context,
                account.looked_up,
            )
            if isinstance(outcome, Hit):
                self._flights.withdraw(ticket)
        else:
            outcome = await lookup
            account.looked_up(outcome)
        is_waited_for = isinstance(outcome, Miss) and outcome.paraphrase is not None
        if self._paraphrases is not None and isinstance(outcome, Miss) and is_waited_for:
            outcome = await self._paraphrases.settle(ticket, outcome, account.looks_again)
            account.looked_up(outcome)
        return outcome

    async def _read_along(
        self, ticket: Ticket, account: Account, context: Context, missed: Miss | None = None
    ) -> bool:
        """Take part in the generation under way for the same question, if there is one."""
        flight = self._flights.to_join(ticket, missed)
        if flight is None:
            return False
        account.coalesced(flight.tape, flight.span)
        await self._flights.join(flight, ticket, context)
        return True

    async def _generate(self, ticket: Ticket, miss: Miss, account: Account, reader: Reader) -> None:
        """Have a worker answer, for this caller and for those who join."""
        tape = account.follow(Tape(ticket, self._max_answer_bytes, self._clock))
        self._shadows.copy_soon(ticket)
        timeout_s = self._flights.timeout_s(ticket)

        async def generate(to: Reader) -> None:
            if self._mesh is not None and miss.flight is not None:
                account.coalesced(tape, INVALID_SPAN_CONTEXT)
                if await self._mesh.follow(miss.flight, ticket, tape, to):
                    return  # the router that generated it stores it
                account.generates()
            hint = miss.prefix
            with self._held.hold(ticket, tape):
                async with self._admission.claim(ticket, tape, hint) as place:
                    worker = await self._relay.stream(
                        place.ticket, tape, to, hint, timeout_s=timeout_s
                    )
            answer = tape.answer(worker.name, ticket.model.revision)
            self._cache.store_soon(ticket, answer)  # whole answers only

        await self._flights.fly(ticket, tape, reader, generate)

    async def Attach(self, request: pb.AttachRequest, context: Context) -> None:
        """Go on with a stream of the caller's whose connection was lost."""
        reader, router = Reattached(context), None
        if self._mesh is not None:
            router = self._mesh.caller(context.invocation_metadata() or ())
        if router is not None:
            with self._admission.readmit(router.tenant):
                await self._flights.show(router.tenant, router.exact, reader)
            return
        tenant = self._door.identify(context).tenant
        with self._admission.readmit(tenant):
            await self._flights.attach(tenant, request.request_id, request.offset, reader)

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
            + self._split_models(default)
        )

    def _split_models(self, default: str) -> list[pb.Model]:
        """The public names; what a variant can do is in its own model's line."""
        return [
            pb.Model(
                name=split.settings.model,
                is_default=split.settings.model == default,
                ready_workers=self._pool.count_ready({v.model for v in split.variants.values()}),
            )
            for split in self._splits.all
        ]

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
