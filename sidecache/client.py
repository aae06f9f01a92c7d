"""The async client.

Ask, and read the answer as it is made::

    from sidecache.client import SidecacheClient

    async with SidecacheClient("127.0.0.1:7070", api_key=key) as client:
        async with client.generate("What is the capital of France?") as stream:
            async for piece in stream.text():
                print(piece, end="", flush=True)
        print(stream.started.source, stream.ttft_s)

or wait for all of it::

        answer = await client.complete("What is the capital of France?", max_tokens=32)
        print(answer.text, answer.source.name, answer.trace_id)

Everything that goes wrong is a class of :mod:`sidecache.errors`. One client
serves any number of concurrent calls over one connection; it belongs to the
event loop it was opened in.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace

from sidecache.errors import InvalidRequest, from_rpc_error
from sidecache.failover import FailOverChannel
from sidecache.generate_request import GenerateOptions, Prompt, build_request, chat_messages
from sidecache.generation import (
    Choice,
    Completion,
    FinishReason,
    GenerationStream,
    Source,
    raise_if_only_the_call_was_cancelled,
)
from sidecache.resumption import (
    DEFAULT_WINDOW_S,
    AttachedCall,
    Call,
    Metadata,
    Resumption,
    window_of,
)
from sidecache.transport import ClientTls, open_channel
from sidecache.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1.inference_pb2 import CacheControl, ChatMessage, GenerateResponse
from sidecache.version import version

__all__ = [
    "CacheControl",
    "ChatMessage",
    "Choice",
    "ClientTls",
    "Completion",
    "FinishReason",
    "GenerateOptions",
    "GenerateResponse",
    "GenerationStream",
    "SidecacheClient",
    "Source",
]

GENERATE_TIMEOUT_S = 600.0
UNARY_TIMEOUT_S = 10.0
# Two prefills of a long prompt.
WARM_TIMEOUT_S = 120.0

Response = TypeVar("Response")


class _Stubs(NamedTuple):
    """The services of one open channel."""

    inference: "inference_pb2_grpc.InferenceServiceAsyncStub"
    admin: "admin_pb2_grpc.AdminServiceAsyncStub"
    health: health_pb2_grpc.HealthStub


class SidecacheClient:
    """A connection to a router (or to a worker: both serve the same service).

    Args:
        address: ``host:port``, ``[v6]:port`` or ``unix:/path``; or several routers: a call that
            one does not take goes to the next, before its first event.
        api_key: sent as ``authorization: Bearer …`` with every call.
        tls: None chooses: plaintext to this machine, TLS to any other. True is
            TLS with gRPC's own authorities, False is plaintext.
        allow_plaintext: send the API key in plaintext to another machine. Only
            where the network itself is trusted.
        tracer_provider: instead of OpenTelemetry's global one.
        timeout_s: the deadline of a generation that names none.

    Raises:
        InvalidRequest: the key holds characters that a header cannot.
        SetupError: on entering: the key would travel in plaintext, or a TLS file
            cannot be read. A server that is not there shows in the first call,
            as ``Unavailable``.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: ClientTls | bool | None = None,
        allow_plaintext: bool = False,
        tracer_provider: trace.TracerProvider | None = None,
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> None:
        self.addresses = (address,) if isinstance(address, str) else tuple(address)
        if not self.addresses:
            raise InvalidRequest("empty; give at least one router's", field="address")
        self.address = self.addresses[0]
        self._metadata = _credentials(api_key)
        self._tls = tls
        self._allow_plaintext = allow_plaintext
        self._timeout_s = timeout_s
        self._tracer = trace.get_tracer("sidecache.client", version(), tracer_provider)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: _Stubs | None = None
        self._streams: set[GenerationStream] = set()

    async def __aenter__(self) -> Self:
        if self._channel is not None:
            raise RuntimeError("this client is open already; open another one")
        channels = [
            open_channel(
                address,
                tls=self._tls,
                has_api_key=bool(self._metadata),
                allow_plaintext=self._allow_plaintext,
            )
            for address in self.addresses
        ]
        channel = channels[0] if len(channels) == 1 else FailOverChannel(channels)
        self._channel = channel
        self._stubs = _Stubs(
            inference_pb2_grpc.InferenceServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; whatever is still running on it is cancelled."""
        channel, self._channel, self._stubs = self._channel, None, None
        # Closing a channel does not wake who reads from it, so the streams are
        # cancelled first.
        for stream in list(self._streams):
            stream.cancel()
        if channel is not None:
            await channel.close(None)

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        timeout_s: float | None = None,
        resume: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Stream one generation; use the result in ``async with``.

        Args:
            prompt: a string is one user turn of a chat; a sequence is the chat's
                messages (``ChatMessage``, or mappings with role and content).
                ``text=`` or ``token_ids=`` take its place.
            timeout_s: the deadline of the whole generation; it reaches the engine.
            resume: go on by itself, token for token, when the connection is lost; the
                router is asked to keep the stream for ``attach_window_s`` (15 s).
            options: see :class:`GenerateOptions`.

        Raises:
            InvalidRequest: at once, for what no server needs to see. Every other
                error comes from iterating over the stream.
        """
        request = build_request(prompt, options)
        return self.stream(request, timeout_s=timeout_s, resume=resume)

    async def complete(
        self,
        prompt: Prompt | None = None,
        *,
        timeout_s: float | None = None,
        resume: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Wait for a whole answer; takes what :meth:`generate` takes.

        Raises:
            SidecacheError: whatever ended the generation before its end.
        """
        async with self.generate(prompt, timeout_s=timeout_s, resume=resume, **options) as stream:
            return await stream.complete()

    def stream(
        self,
        request: pb.GenerateRequest,
        *,
        timeout_s: float | None = None,
        resume: bool = False,
    ) -> GenerationStream:
        """Stream a generation whose request you built yourself, any field of it.

        Raises:
            InvalidRequest: ``resume`` of several choices.
        """
        resumption = self._resumption(window_of(request)) if resume else None
        return self._new_stream(self._open.inference.Generate, request, timeout_s, resumption)

    def attach(
        self, request_id: str, offset: int = 0, *, timeout_s: float | None = None
    ) -> GenerationStream:
        """Go on with a stream whose connection was lost; its request had an ``attach_window_s``.

        Args:
            request_id: ``stream.started.request_id``, which names the router too.
            offset: ``stream.next_offset``, the tokens received; 0 is all of it again.
            timeout_s: the deadline of what is left.

        Raises:
            InvalidRequest: from iterating: no message of the stream ended at this offset.
            NotFound: from iterating: the stream is not there any more, or not yours.
        """
        resumption = self._resumption(DEFAULT_WINDOW_S, request_id)

        def method(
            _request: pb.GenerateRequest, *, timeout: float, metadata: Metadata
        ) -> AttachedCall:
            return resumption.attach(offset, timeout, metadata)

        return self._new_stream(method, pb.GenerateRequest(), timeout_s, resumption, offset)

    def _resumption(self, window_s: float, request_id: str = "") -> Resumption:
        return Resumption(self._open.inference.Attach, self._metadata, window_s, request_id)

    def _new_stream(
        self,
        method: Callable[..., Call],
        request: pb.GenerateRequest,
        timeout_s: float | None,
        resumption: Resumption | None,
        first_offset: int = 0,
    ) -> GenerationStream:
        return GenerationStream(
            method,
            request,
            metadata=self._metadata,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            tracer=self._tracer,
            address=self.address,
            siblings=self._streams,
            resumption=resumption,
            first_offset=first_offset,
        )

    async def models(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> list[pb.Model]:
        """The models that can be asked for now."""
        stub = self._open.inference.ListModels
        return list((await self._call(stub, pb.ListModelsRequest(), timeout_s)).models)

    async def tokenize(
        self,
        prompt: Prompt | None = None,
        *,
        text: str | None = None,
        model: str = "",
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> list[int]:
        """The token ids the model would see.

        Args:
            prompt: a chat, rendered with the model's own template.
            text: instead of it: tokenized as it stands.
            model: a name from :meth:`models`; the router's default when empty.
            timeout_s: the deadline of the call.
        """
        if (prompt is None) == (text is None):
            raise InvalidRequest("give either prompt or text", field="prompt")
        request = pb.TokenizeRequest(model=model)
        if prompt is not None:
            request.chat.messages.extend(chat_messages(prompt))
        elif text is not None:
            request.text = text
        stub = self._open.inference.Tokenize
        return list((await self._call(stub, request, timeout_s)).token_ids)

    async def health(self, service: str = "", *, timeout_s: float = UNARY_TIMEOUT_S) -> bool:
        """Whether the server, or one service of it, is ready to serve.

        Raises:
            Unavailable: no server answers at this address.
            NotFound: the server knows no such service.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        stub = self._open.health.Check  # type: ignore[attr-defined]  # untyped stubs
        response = await self._call(stub, request, timeout_s)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def report_wrong(
        self, cache_entry_id: str, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> None:
        """Take a stored answer that did not fit its prompt out of service, at once.

        Args:
            cache_entry_id: ``Completion.cache_entry_id`` or ``started.cache_entry_id``.
            timeout_s: the deadline of the call.

        Raises:
            NotFound: you have no such answer (any more).
        """
        request = pb.ReportWrongAnswerRequest(cache_entry_id=cache_entry_id)
        await self._call(self._open.inference.ReportWrongAnswer, request, timeout_s)

    async def workers(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> list[admin_pb2.WorkerStatus]:
        """The router's workers and their state; needs a key with admin rights."""
        stub = self._open.admin.ListWorkers
        response = await self._call(stub, admin_pb2.ListWorkersRequest(), timeout_s)
        return list(response.workers)

    async def set_cordon(
        self, worker: str, *, cordoned: bool, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.WorkerStatus:
        """Give a worker no new streams, or again some; needs a key with admin rights."""
        stub = self._open.admin.SetCordon
        request = admin_pb2.SetCordonRequest(worker=worker, cordoned=cordoned)
        return (await self._call(stub, request, timeout_s)).worker

    async def cache_stats(
        self, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.GetCacheStatsResponse:
        """The cache sidecar's figures, and whether it is reachable; needs admin rights."""
        stub = self._open.admin.GetCacheStats
        return await self._call(stub, admin_pb2.GetCacheStatsRequest(), timeout_s)

    async def invalidate_cache(
        self, request: admin_pb2.InvalidateCacheRequest, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.InvalidateCacheResponse:
        """Remove stored answers, or count them; needs a key with admin rights.

        Raises:
            InvalidRequest: no criterion, and not ``all``.
        """
        return await self._call(self._open.admin.InvalidateCache, request, timeout_s)

    async def explain_cache(
        self,
        prompt: Prompt | None = None,
        *,
        tenant: str = "",
        timeout_s: float = UNARY_TIMEOUT_S,
        **options: Unpack[GenerateOptions],
    ) -> admin_pb2.ExplainCacheResponse:
        """Why a request would hit or miss, without generating; needs admin rights.

        Args:
            prompt: and ``options``: as :meth:`generate` takes them.
            tenant: who would ask; empty: your own tenant.
            timeout_s: the deadline of the call.
        """
        request = build_request(prompt, options)
        return await self.explain_cache_request(request, tenant=tenant, timeout_s=timeout_s)

    async def explain_cache_request(
        self,
        request: pb.GenerateRequest,
        *,
        tenant: str = "",
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> admin_pb2.ExplainCacheResponse:
        """As :meth:`explain_cache`, for a request you built yourself."""
        asked = admin_pb2.ExplainCacheRequest(tenant=tenant, request=request)
        return await self._call(self._open.admin.ExplainCache, asked, timeout_s)

    async def warm_prefix(
        self, request: admin_pb2.WarmPrefixRequest, *, timeout_s: float = WARM_TIMEOUT_S
    ) -> admin_pb2.WarmPrefixResponse:
        """Prefill a prompt on several workers; needs a key with admin rights.

        What one worker finds wrong stands beside its name; the others go on.

        Raises:
            InvalidRequest: more workers than are ready, or a prompt that is refused.
        """
        return await self._call(self._open.admin.WarmPrefix, request, timeout_s)

    async def splits(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> list[admin_pb2.Split]:
        """The router's splits, with each variant's figures; needs a key with admin rights."""
        stub = self._open.admin.ListSplits
        return list((await self._call(stub, admin_pb2.ListSplitsRequest(), timeout_s)).splits)

    async def set_split_weights(
        self, model: str, weights: Mapping[str, float], *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.Split:
        """Change the weights of some variants of a split; needs a key with admin rights.

        Raises:
            NotFound: there is no such split.
            InvalidRequest: no such variant, or a weight that cannot be.
        """
        stub = self._open.admin.SetSplitWeights
        request = admin_pb2.SetSplitWeightsRequest(model=model, weights=weights)
        return (await self._call(stub, request, timeout_s)).split

    async def reset_split(
        self, model: str, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.Split:
        """Take a split's configured weights again, and forget a rollback; needs admin rights."""
        stub = self._open.admin.ResetSplit
        return (await self._call(stub, admin_pb2.ResetSplitRequest(model=model), timeout_s)).split

    async def scale_signal(
        self, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.GetScaleSignalResponse:
        """What runs, waits and is refused, and how many workers that asks for; admin only."""
        stub = self._open.admin.GetScaleSignal
        return await self._call(stub, admin_pb2.GetScaleSignalRequest(), timeout_s)

    @property
    def _open(self) -> "_Stubs":
        if self._stubs is None:
            raise RuntimeError("this client is not open: use `async with SidecacheClient(…)`")
        return self._stubs

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: object,
        timeout_s: float,
    ) -> Response:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            raise_if_only_the_call_was_cancelled()
            raise


def _credentials(api_key: str | None) -> Sequence[tuple[str, str]]:
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        raise InvalidRequest("an API key is printable ASCII without spaces around", field="api_key")
    return (("authorization", f"Bearer {api_key}"),)
