"""The door: nothing is looked up, leased or counted for a caller it did not let in."""

import secrets
from collections.abc import Callable
from typing import Any

import grpc

from router.admission.priority import PriorityClass, check_priority
from router.auth import Authenticator, Principal
from router.cache_control import why_not_looked_up, why_not_stored
from router.model import ServedModel
from router.pool import WorkerPool
from router.retention import bound_retention
from router.settings import LimitSettings
from router.splits.splits import Chosen, Splits
from router.tenant_salt import TenantSalt
from router.ticket import Ticket
from router.validation import check_tokenizable, validate
from sidecache.key import request_key
from sidecache.v1 import inference_pb2 as pb


class Door:
    """Authenticates a call, resolves and checks its request, and writes the ticket."""

    def __init__(
        self,
        authenticator: Authenticator,
        pool: WorkerPool,
        limits: LimitSettings,
        clock: Callable[[], float],
        salt: TenantSalt,
        splits: Splits,
    ) -> None:
        self._salt = salt
        self._splits = splits
        self.authenticator = authenticator
        self._pool = pool
        self._limits = limits
        self._clock = clock
        # A request id names its router, so that the stream can be found again.
        self._instance = secrets.token_hex(4)

    def reconfigure(self, limits: LimitSettings) -> None:
        """Take new limits for whoever comes next."""
        self._limits = limits

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Principal:
        """Say who calls.

        Raises:
            Unauthenticated: no credentials, or unknown ones.
        """
        return self.authenticator.authenticate(context.invocation_metadata() or ())

    def open(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Ticket:
        """Let a generation in, or raise what is wrong with it.

        Raises:
            Unauthenticated: no credentials, or unknown ones.
            ModelNotFound: nobody serves the model.
            InvalidRequest: a field is out of its range.
            Forbidden: the key may not ask for this priority or retention.
        """
        principal = self.identify(context)
        check_priority(request.priority, principal.max_priority)
        if request.HasField("retention"):
            bound_retention(request, principal.max_retention, self._limits.max_retention_s)
        return self.open_for(principal.tenant, request, context, principal.priority_class)

    def open_for(
        self,
        tenant: str,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        priority_class: PriorityClass = PriorityClass.STANDARD,
    ) -> Ticket:
        """Let a generation in as this tenant's; raises as :meth:`open` does.

        The tenant is one that :meth:`identify` gave, or that an admin named.
        """
        opened_at = self._clock()
        # Before the key is made: it holds the variant, and no other's answer is found by it.
        chosen = self._splits.resolve(request, tenant)
        model = self._pool.model(request.model)
        request.model = model.name
        if not request.HasField("max_tokens"):
            request.max_tokens = min(self._limits.default_max_tokens, model.context_length)
        if not request.HasField("n"):
            request.n = 1
        validate(request, model, self._limits)
        request.cache_salt = self._salt.of(tenant)
        # Engines that know priorities keep the classes apart too, and may preempt by them.
        if priority_class.engine_base:
            request.priority += priority_class.engine_base
        return self._write_ticket(
            request, context, tenant, model, opened_at, chosen, priority_class
        )

    def open_tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ServedModel:
        """Let a Tokenize call in; raises as :meth:`open` does."""
        self.identify(context)
        model = self._pool.model(self._splits.served_name(request.model))
        request.model = model.name
        check_tokenizable(request, self._limits)
        return model

    def _write_ticket(
        self,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        tenant: str,
        model: ServedModel,
        opened_at: float,
        chosen: Chosen | None,
        priority_class: PriorityClass,
    ) -> Ticket:
        may_look_up = not why_not_looked_up(request)
        may_store = not why_not_stored(request)
        key = None
        if may_look_up or may_store:
            key = request_key(request, tenant=tenant, model=model.name, revision=model.revision)
        remaining_s = context.time_remaining()
        limit_s = self._limits.max_request_s
        return Ticket(
            request_id=f"{self._instance}-{secrets.token_hex(8)}",
            tenant=tenant,
            request=request,
            model=model,
            key=key,
            may_look_up=may_look_up,
            may_store=may_store,
            timeout_s=limit_s if remaining_s is None else min(remaining_s, limit_s),
            opened_at=opened_at,
            attach_window_s=self._attach_window_s(request),
            split=chosen.split if chosen else "",
            variant=chosen.variant if chosen else "",
            priority_class=priority_class,
        )

    def _attach_window_s(self, request: pb.GenerateRequest) -> float:
        if not request.HasField("attach_window"):
            return 0.0
        asked_s = request.attach_window.ToNanoseconds() / 1e9
        return min(asked_s, self._limits.max_attach_window_s)
