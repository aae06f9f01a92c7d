"""An OpenTelemetry collector that takes everything and counts spans by service."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class SpanCounter(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts the spans of each service.

    Attributes:
        address: of the collector, ``host:port``.
        spans: by the resource's service.name.
    """

    def __init__(self) -> None:
        self.address = ""
        self.spans: Counter[str] = Counter()
        self._came = asyncio.Condition()

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: Context
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource_spans in request.resource_spans:
            service = next(
                attribute.value.string_value
                for attribute in resource_spans.resource.attributes
                if attribute.key == "service.name"
            )
            self.spans[service] += sum(len(scope.spans) for scope in resource_spans.scope_spans)
        async with self._came:
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def all_reported(self, services: frozenset[str]) -> None:
        """Wait until each of the services has sent a span since the last :meth:`forget`."""
        async with self._came:
            await self._came.wait_for(lambda: services <= self.spans.keys())

    def forget(self) -> None:
        """Count from 0 again."""
        self.spans.clear()


class _MetricSink(metrics_service_pb2_grpc.MetricsServiceServicer):
    async def Export(
        self, _request: metrics_service_pb2.ExportMetricsServiceRequest, _context: Context
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        return metrics_service_pb2.ExportMetricsServiceResponse()


@asynccontextmanager
async def open_collector() -> AsyncIterator[SpanCounter]:
    """Serve OTLP over gRPC on a free port of 127.0.0.1."""
    spans = SpanCounter()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(spans, server)  # type: ignore[no-untyped-call]  # generated
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_MetricSink(), server)  # type: ignore[no-untyped-call]  # generated
    spans.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield spans
    finally:
        await server.stop(grace=None)
