import io
import json
import logging

import grpc
import pytest

from observability.logs import JsonFormatter
from sidecache.errors import BrokenInvariant
from sidecache.v1 import inference_pb2 as pb
from tests.unit.observability.conftest import Pair

CANARY = "canary-5b0e7d"


@pytest.mark.parametrize("error", [ValueError, BrokenInvariant, KeyError, None])
async def test_a_secret_in_a_request_stays_out_of_telemetry(
    pair: Pair, error: type[Exception] | None
) -> None:
    """A prompt, a key and an exception that quotes them appear in no span, metric or log line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("sidecache-test"))
    logging.getLogger().addHandler(handler)

    async def quote(request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        await context.write(pb.GenerateResponse(delta=pb.Delta(text=request.text)))
        if error is not None:
            raise error(request.text)

    pair.service.stream = quote
    try:
        call = pair.stub.Generate(
            pb.GenerateRequest(text=CANARY),
            metadata=(("authorization", f"Bearer {CANARY}"), ("tracestate", f"k={CANARY}")),
        )
        if error is None:
            assert [m.delta.text async for m in call] == [CANARY]
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
    finally:
        logging.getLogger().removeHandler(handler)
    spans = [json.loads(s.to_json()) for end in (pair.client, pair.server) for s in end.spans()]
    assert spans
    for span in spans:
        # The caller's own tracestate travels; nothing of ours may quote it.
        span["context"].pop("trace_state", None)
        assert CANARY not in json.dumps(span)
    for end in (pair.client, pair.server):
        metrics = end.reader.get_metrics_data()
        assert metrics is not None
        assert CANARY not in metrics.to_json()
    assert CANARY not in stream.getvalue()
