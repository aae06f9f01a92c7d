"""What a worker says of itself and of each generation: facts, spans and metrics."""

import asyncio
import json
from hashlib import sha256

import grpc
import pytest
from opentelemetry.trace import StatusCode

from observability import names
from sidecache.errors import (
    NotFound,
    Unsupported,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from tests.fixtures.worker import ENDLESS, paced, worker


async def test_a_worker_describes_itself() -> None:
    """GetModel, ListModels and Tokenize agree, and every start is a new epoch."""
    epochs = set()
    for _ in range(2):
        async with worker(name="w9", model_name="toy") as served:
            model = await served.control.GetModel(worker_pb2.GetModelRequest(include_files=True))
            listed = (await served.inference.ListModels(pb.ListModelsRequest())).models
            tokens = await served.inference.Tokenize(pb.TokenizeRequest(text="hé"))
            epochs.add(model.epoch)
            assert (await served.load()).epoch == model.epoch
    assert len(epochs) == 2
    assert (model.worker, model.name, model.engine) == ("w9", "toy", "scripted")
    assert [(each.name, each.revision) for each in listed] == [("toy", model.revision)]
    assert list(tokens.token_ids) == list("hé".encode())
    (tokenizer,) = model.tokenizer_files
    assert json.loads(tokenizer.content) == {"kind": "utf8-bytes", "chat": "role: content"}
    assert sha256(tokenizer.content).hexdigest() == model.tokenizer_fingerprint
    assert model.block_size == 32
    assert model.capabilities.kv_events
    assert not model.capabilities.cached_tokens_estimated
    assert tokens.context_length == model.context_length


async def test_one_span_and_the_metrics_of_a_generation() -> None:
    """The engine's part is a child of the server span, ended, with GenAI attributes."""
    async with worker() as served:
        await served.events(pb.GenerateRequest(text="hello", max_tokens=6))
        with pytest.raises(NotFound):
            await served.events(pb.GenerateRequest(text="hello", adapter="nowhere"))
        recorded = served.metrics.get_metrics_data()
    spans = {span.name: span for span in served.spans.get_finished_spans()}
    span = spans["chat scripted"]
    parent = spans["sidecache.v1.InferenceService/Generate"]
    assert span.parent is not None
    assert span.parent.span_id in {
        each.context.span_id
        for each in served.spans.get_finished_spans()
        if each.context and each.name == parent.name
    }
    attributes = dict(span.attributes or {})
    assert attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 5
    assert attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 6
    assert attributes[names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == 0
    assert attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert "hello" not in str(attributes)
    assert recorded is not None
    kinds = {
        metric.name
        for resource in recorded.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, names.TOKENS, names.QUEUE_DEPTH} <= kinds


async def test_a_cancelled_generation_ends_its_span() -> None:
    """However a stream ends, its span ends too, and says so."""
    async with worker(scripted=paced()) as served:
        call = served.inference.Generate(pb.GenerateRequest(text="x", max_tokens=ENDLESS))
        await call.read()
        call.cancel()
        await served.until(running=0)
        async with asyncio.timeout(2):
            while not any(s.name == "chat scripted" for s in served.spans.get_finished_spans()):
                await asyncio.sleep(0)
        (span,) = [s for s in served.spans.get_finished_spans() if s.name == "chat scripted"]
    assert (span.attributes or {})[names.ERROR_TYPE] == "CancelledError"
    assert span.status.status_code is StatusCode.UNSET


async def test_what_this_release_does_not_serve_says_so() -> None:
    """Attach answers Unsupported, in words."""
    async with worker() as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in served.inference.Attach(pb.AttachRequest(request_id="r")):
                pass
        assert isinstance(from_rpc_error(error.value), Unsupported)
