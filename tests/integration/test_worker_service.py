"""A worker over gRPC: the scripted engine behind a real server."""

import asyncio
import re

import grpc
import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_text, scripted_token
from sidecache.errors import (
    InvalidRequest,
)
from sidecache.stream_events import kind_of
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.worker import ids_of, paced, worker


async def test_a_stream_from_started_to_finished() -> None:
    """`started` first, every token at its offset, one `finished` with the usage."""
    async with worker(name="w1") as served:
        events = await served.events(pb.GenerateRequest(text="hello", max_tokens=40))
    kinds = [kind_of(event) for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    started, finished = events[0].started, events[-1].finished
    assert (started.source, started.worker, started.model) == (pb.SOURCE_ENGINE, "w1", "scripted")
    assert re.fullmatch("[0-9a-f]{32}", started.request_id)
    assert re.fullmatch("[0-9a-f]{32}", started.trace_id)
    assert not started.HasField("cached_prompt_tokens")
    expected = [scripted_token(prompt_seed(tuple(b"hello")), position) for position in range(40)]
    assert ids_of(events) == expected
    assert "".join(event.delta.text for event in events) == "".join(map(scripted_text, expected))
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert finished.usage == pb.Usage(prompt_tokens=5, completion_tokens=40, cached_prompt_tokens=0)


async def test_the_callers_request_id_is_kept() -> None:
    """A router's id goes through, so that one request has one id everywhere."""
    async with worker() as served:
        request = pb.GenerateRequest(text="x", max_tokens=1)
        events = await served.events(request, metadata=(("x-request-id", "from-the-router"),))
        assert events[0].started.request_id == "from-the-router"
        with pytest.raises(InvalidRequest, match="x-request-id"):
            await served.events(request, metadata=(("x-request-id", "x" * 200),))


async def test_every_choice_is_finished_once() -> None:
    """With n choices each has its own offsets and its own end."""
    async with worker() as served:
        sampling = pb.SamplingParameters(seed=7, temperature=1.0)
        events = await served.events(
            pb.GenerateRequest(text="x", max_tokens=10, n=3, sampling=sampling)
        )
    for choice in range(3):
        deltas = [e.delta for e in events if e.HasField("delta") and e.delta.choice == choice]
        ids = [each for delta in deltas for each in delta.token_ids]
        assert ids == [scripted_token(7 + choice, position) for position in range(10)]
    assert sorted(e.finished.choice for e in events if e.HasField("finished")) == [0, 1, 2]


async def test_tokens_coalesce_up_to_the_limit() -> None:
    """At full speed many tokens share a message, but never more than the setting."""
    async with worker(coalesce_max_tokens=8) as served:
        events = await served.events(pb.GenerateRequest(text="x", max_tokens=64))
    sizes = [len(event.delta.token_ids) for event in events if event.HasField("delta")]
    assert sum(sizes) == 64
    assert max(sizes) == 8


async def test_heartbeats_while_nothing_comes() -> None:
    """In a queue and in a long prefill the stream says that it lives."""
    async with worker(
        scripted=paced(ttft_s=0.2), max_sequences=1, progress_interval_s=0.04
    ) as served:
        request = pb.GenerateRequest(text="x", max_tokens=2)
        first, second = await asyncio.gather(served.events(request), served.events(request))
    counts = [sum(event.HasField("progress") for event in each) for each in (first, second)]
    assert min(counts) >= 2
    # Who waited for the other's slot as well waited about twice as long.
    assert max(counts) >= min(counts) + 2


async def test_a_hung_engine_gets_no_heartbeats() -> None:
    """Heartbeats stop when the engine is silent: silence must mean trouble."""
    async with worker(
        scripted=paced(hang_after_tokens=0), progress_interval_s=0.02, engine_silence_s=0.1
    ) as served:
        call = served.inference.Generate(pb.GenerateRequest(text="x"), timeout=1.0)
        beats = 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for event in call:
                beats += event.HasField("progress")
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1 <= beats <= 8
        await served.until(running=0)


async def test_a_continuation_goes_on_at_its_offset() -> None:
    """A worker takes over a stream exactly where another one left it."""
    async with worker() as served:
        whole = ids_of(await served.events(pb.GenerateRequest(text="x", max_tokens=20)))
        text = "".join(map(scripted_text, whole[:7]))
        rest = await served.events(
            pb.GenerateRequest(
                text="x",
                max_tokens=20,
                continuation=pb.Continuation(delivered_token_ids=whole[:7], delivered_text=text),
            )
        )
    assert rest[1].delta.offset == 7
    assert ids_of(rest) == whole[7:]
    assert rest[-1].finished.usage.completion_tokens == 20
