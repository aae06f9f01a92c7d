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

from collections.abc import Callable, Sequence
from typing import Unpack

from grpc_health.v1 import health_pb2
from opentelemetry import trace

from sidecache.client_connection import UNARY_TIMEOUT_S
from sidecache.errors import InvalidRequest
from sidecache.generate_request import GenerateOptions, Prompt, build_request, chat_messages
from sidecache.generation import (
    Choice,
    Completion,
    FinishReason,
    GenerationStream,
    Source,
)
from sidecache.operator_calls import OperatorCalls
from sidecache.resumption import (
    DEFAULT_WINDOW_S,
    AttachedCall,
    Call,
    Metadata,
    Resumption,
    window_of,
)
from sidecache.transport import ClientTls
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1.inference_pb2 import (
    CacheControl,
    ChatMessage,
    GenerateResponse,
    PrefixRetention,
)
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
    "PrefixRetention",
    "SidecacheClient",
    "Source",
]

GENERATE_TIMEOUT_S = 600.0


class SidecacheClient(OperatorCalls):
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
        super().__init__(address, api_key=api_key, tls=tls, allow_plaintext=allow_plaintext)
        self._timeout_s = timeout_s
        self._tracer = trace.get_tracer("sidecache.client", version(), tracer_provider)
        self._streams: set[GenerationStream] = set()

    async def aclose(self) -> None:
        """Close the connection; whatever is still running on it is cancelled."""
        # Closing a channel does not wake who reads from it, so the streams are
        # cancelled first.
        for stream in list(self._streams):
            stream.cancel()
        await super().aclose()

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
