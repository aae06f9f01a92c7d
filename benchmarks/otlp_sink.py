"""An OTLP/gRPC receiver that keeps what it is sent: a collector for one machine.

Lets a benchmark run with telemetry really exported, and a test ask which spans
arrived.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

_MAX_SPANS = 100_000
_MAX_METRICS_BYTES = 16 << 20


@dataclass
class Received:
    """What came in, by the service that sent it; at most 100,000 spans and 16 MiB of metrics.

    ``metrics`` holds the serialized exports, one after the other.
    """

    spans: list[tuple[str, trace_pb2.Span]] = field(default_factory=list)
    metric_exports: int = 0
    metrics: bytearray = field(default_factory=bytearray)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    if len(self._received.spans) < _MAX_SPANS:
                        self._received.spans.append((names.get("service.name", ""), span))
        self._received.changed.set()
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    async def Export(self, request: Any, context: Any) -> Any:
        self._received.metric_exports += 1
        if len(self._received.metrics) < _MAX_METRICS_BYTES:
            self._received.metrics += request.SerializeToString()
        self._received.changed.set()
        return metrics_service_pb2.ExportMetricsServiceResponse()


@asynccontextmanager
async def otlp_sink() -> AsyncIterator[tuple[str, Received]]:
    """Receive OTLP on a free loopback port; yields its endpoint and what comes in."""
    received = Received()
    server = grpc.aio.server()
    # Generated without types.
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(received), server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(received), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}", received
    finally:
        await server.stop(grace=None)


async def _main(ready_file: Path) -> None:
    async with otlp_sink() as (endpoint, _):
        ready_file.write_text(endpoint)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", required=True, type=Path)
    asyncio.run(_main(parser.parse_args().ready_file))
