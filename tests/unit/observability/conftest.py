"""A real server whose handlers each test supplies, and the telemetry of both its ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from observability.channel import open_channel
from observability.server import RunningServer, open_server
from observability.settings import ServerSettings, TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import Unsupported
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc

SERVICE = "sidecache.v1.InferenceService"
UNARY = f"{SERVICE}/ListModels"
STREAM = f"{SERVICE}/Generate"

Handler = Callable[[Any, Any], Awaitable[Any]]


async def answer_nothing(_request: Any, _context: Any) -> pb.ListModelsResponse:
    return pb.ListModelsResponse()


async def stream_three(_request: Any, context: Any) -> None:
    for _ in range(3):
        await context.write(pb.GenerateResponse())


@dataclass
class Service(rpc.InferenceServiceServicer):
    """Runs what the test gives it."""

    unary: Handler = answer_nothing
    stream: Handler = stream_three

    async def ListModels(self, request: Any, context: Any) -> Any:
        return await self.unary(request, context)

    async def Generate(self, request: Any, context: Any) -> None:
        await self.stream(request, context)

    async def Attach(self, request: Any, context: Any) -> None:
        raise Unsupported("the tests need no Attach")

    async def Tokenize(self, request: Any, context: Any) -> Any:
        raise Unsupported("the tests need no Tokenize")

    async def ReportWrongAnswer(self, request: Any, context: Any) -> Any:
        raise Unsupported("the tests need no ReportWrongAnswer")


@dataclass
class End:
    """One end's telemetry and what it recorded."""

    telemetry: Telemetry
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @classmethod
    def start(cls, service: str, settings: TelemetrySettings | None = None) -> "End":
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        telemetry = Telemetry.start(
            service,
            settings or TelemetrySettings(),
            span_exporter=exporter,
            metric_reader=reader,
        )
        return cls(telemetry, exporter, reader)

    def spans(self, kind: SpanKind | None = None) -> list[Any]:
        # Any: the SDK types attributes as a Mapping that may be None.
        return [s for s in self.exporter.get_finished_spans() if kind in (None, s.kind)]

    async def one_span(self, kind: SpanKind) -> Any:
        """The only span of this kind; waits until it has ended."""
        async with asyncio.timeout(10):
            while not (found := self.spans(kind)):
                await asyncio.sleep(0.005)
        assert len(found) == 1
        return found[0]

    def points(self, metric_name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == metric_name
            for point in metric.data.data_points
        ]


@dataclass
class Pair:
    """A served Service and an instrumented stub for it."""

    service: Service
    server: End
    client: End
    address: str = ""
    running: RunningServer | None = None
    channel: Any = None
    stub: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def serving(
    service: Service,
    *,
    server: End | None = None,
    client: End | None = None,
    settings: ServerSettings | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Sequence[tuple[str, int | str]] = (),
) -> AsyncIterator[Pair]:
    pair = Pair(
        service,
        server or End.start("sidecache-server"),
        client or End.start("sidecache-client"),
    )
    async with open_server(
        settings or ServerSettings(),
        pair.server.telemetry,
        lambda server: rpc.add_InferenceServiceServicer_to_server(service, server),
        services=[SERVICE],
        interceptors=interceptors,
        options=options,
    ) as running:
        pair.running, pair.address = running, running.address
        async with open_channel(running.address, pair.client.telemetry) as channel:
            pair.channel, pair.stub = channel, rpc.InferenceServiceStub(channel)
            yield pair


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with serving(Service()) as pair:
        yield pair
