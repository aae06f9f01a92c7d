"""One request through three processes, followed by its trace id from client to engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.otlp_sink import Received, otlp_sink
from chaos.process import ServiceProcess
from observability import names
from sidecache.client import SidecacheClient, Source
from tests.fixtures.stack import KEYS, write_keys

CANARY = "canary-7f3a of the prompt"


@dataclass
class Fleet:
    """Three services as processes, and what they export."""

    client: SidecacheClient
    client_spans: InMemorySpanExporter
    received: Received
    processes: list[ServiceProcess]


@asynccontextmanager
async def fleet(folder: Path, minilm: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        endpoint, received = await stack.enter_async_context(otlp_sink())
        telemetry = {"telemetry__otlp_endpoint": endpoint, "telemetry__metrics_interval_s": "0.2"}

        async def start(module: str, settings: dict[str, str]) -> ServiceProcess:
            return await stack.enter_async_context(
                ServiceProcess.start(module, folder, telemetry | settings)
            )

        worker = await start("inference_svc", {"engine": "scripted", "name": "w1"})
        socket = {
            "server__listen": f"unix:{folder}/cache.sock",
            "semantic__embedder_path": str(minilm),
        }
        cache = await start("cache_svc", socket)
        router = await start(
            "router",
            {
                "workers": json.dumps([worker.address]),
                "cache": cache.address,
                "keys_file": str(write_keys(folder / "keys.toml")),
                # The embedder shares two cores with everything else here.
                "lookup__lookup_timeout_s": "2",
            },
        )
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        client = await stack.enter_async_context(
            SidecacheClient(router.address, api_key=KEYS["acme"], tracer_provider=provider)
        )
        yield Fleet(client, exporter, received, [router, worker, cache])


@dataclass(frozen=True)
class Node:
    """A span, wherever it came from."""

    title: str
    span_id: bytes
    parent_id: bytes
    ended: bool
    attributes: str


_KINDS = {1: "internal", 2: "server", 3: "client"}


def _exported(service: str, span: trace_pb2.Span) -> Node:
    ended = span.end_time_unix_nano >= span.start_time_unix_nano > 0
    title = f"{service.removeprefix('sidecache-')} {_KINDS[span.kind]}: {span.name}"
    return Node(title, span.span_id, span.parent_span_id, ended, str(span.attributes))


def _local(span: ReadableSpan) -> Node:
    context = span.get_span_context()
    assert context is not None
    parent = span.parent.span_id.to_bytes(8) if span.parent else b""
    title = f"caller {span.kind.name.lower()}: {span.name}"
    return Node(
        title, context.span_id.to_bytes(8), parent, bool(span.end_time), str(span.attributes)
    )


async def trace_of(parts: Fleet, trace_id: str, last: str) -> list[Node]:
    """The spans of one trace, once the one with the title ``last`` has come in."""
    async with asyncio.timeout(20):
        while True:
            parts.received.changed.clear()
            found = [
                _exported(service, span)
                for service, span in parts.received.spans
                if span.trace_id.hex() == trace_id
            ]
            if any(node.title == last for node in found):
                break
            await parts.received.changed.wait()
    return found + [
        _local(span)
        for span in parts.client_spans.get_finished_spans()
        if span.context and f"{span.context.trace_id:032x}" == trace_id
    ]


GENERATE = "sidecache.v1.InferenceService/Generate"
LOOKUP = "sidecache.v1.CacheService/Lookup"


@pytest.mark.timeout(90)
async def test_a_request_is_one_trace(tmp_path: Path, minilm_path: Path) -> None:
    """Every span from client to engine is ended, in one trace, under the right parent."""
    async with fleet(tmp_path, minilm_path) as parts:
        answer = await parts.client.complete(CANARY, max_tokens=8)
        assert answer.source is Source.ENGINE
        for process in parts.processes:
            assert await process.terminate() == 0  # flushes what is still to be exported
        spans = await trace_of(parts, answer.trace_id, f"router server: {GENERATE}")
    assert all(node.ended for node in spans)
    assert not [node for node in spans if "canary" in node.attributes]
    cache_read = names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS
    assert {node.title for node in spans if cache_read in node.attributes} == {
        "caller client: chat",
        f"router server: {GENERATE}",
        "worker internal: chat scripted",
    }
    titles = {node.span_id: node.title for node in spans}
    assert len(titles) == len(spans), "a span was exported twice"
    parents = {node.title: titles.get(node.parent_id, "nobody") for node in spans}
    assert parents == {
        "caller client: chat": "nobody",
        f"router server: {GENERATE}": "caller client: chat",
        f"router client: {LOOKUP}": f"router server: {GENERATE}",
        f"cache server: {LOOKUP}": f"router client: {LOOKUP}",
        "cache internal: cache embed": f"cache server: {LOOKUP}",
        "cache internal: cache search": f"cache server: {LOOKUP}",
        "cache internal: cache verify": f"cache server: {LOOKUP}",
        f"router client: {GENERATE}": f"router server: {GENERATE}",
        f"worker server: {GENERATE}": f"router client: {GENERATE}",
        "worker internal: chat scripted": f"worker server: {GENERATE}",
    }


async def test_logs_carry_the_trace_and_no_content(tmp_path: Path, minilm_path: Path) -> None:
    """Each line of every service is JSON; the prompt stands in none of them."""
    async with fleet(tmp_path, minilm_path) as parts:
        await parts.client.complete(CANARY, max_tokens=8)
        for process in parts.processes:
            await process.terminate()
            for line in process.log_tail(1000).splitlines():
                assert "canary" not in line
                assert json.loads(line)["level"]
