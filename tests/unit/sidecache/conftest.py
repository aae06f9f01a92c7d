"""A real grpc.aio server whose Generate and Attach play what a test tells them to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from sidecache.errors import SidecacheError, to_status
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
Script = Callable[[Context], Awaitable[None]]
AttachContext = grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]
AttachScript = Callable[[AttachContext], Awaitable[None]]


@dataclass
class ScriptedService(inference_pb2_grpc.InferenceServiceServicer):
    """Plays ``script``; remembers what it was sent and when a call ended.

    ``attach`` is played by Attach; ``attached`` and ``detached`` are of its calls.
    """

    script: Script | None = None
    attach: AttachScript | None = None
    attached: list[pb.AttachRequest] = field(default_factory=list)
    detached: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        assert self.script is not None
        try:
            await self.script(context)
        except SidecacheError as error:
            await _abort(context, error)
        finally:
            self.ended.set()

    async def Attach(self, request: pb.AttachRequest, context: AttachContext) -> None:
        self.attached.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        assert self.attach is not None
        try:
            await self.attach(context)
        except SidecacheError as error:
            await _abort(context, error)
        finally:
            self.detached.set()

    async def ListModels(
        self, _request: pb.ListModelsRequest, _context: object
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(name="scripted", is_default=True)])

    async def Tokenize(self, request: pb.TokenizeRequest, _context: object) -> pb.TokenizeResponse:
        text = request.text or request.chat.messages[0].content
        return pb.TokenizeResponse(token_ids=list(text.encode()))

    async def ReportWrongAnswer(
        self, request: pb.ReportWrongAnswerRequest, _context: object
    ) -> pb.ReportWrongAnswerResponse:
        raise NotImplementedError


async def _abort(context: Context | AttachContext, error: SidecacheError) -> None:
    details = to_status(error).SerializeToString()
    context.set_trailing_metadata((("grpc-status-details-bin", details),))
    await context.abort(error.code, error.text)


@asynccontextmanager
async def serving(service: ScriptedService) -> AsyncIterator[str]:
    """The address of a running server; the server is stopped on leaving."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    scripted = ScriptedService()
    async with serving(scripted) as scripted.address:
        yield scripted
