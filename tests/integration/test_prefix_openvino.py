"""The embedded engine's KV cache as a sidecar sees it: ids and blocks of a real model."""

import asyncio
import json
from pathlib import Path

import grpc

from inference_svc.serve import serve
from inference_svc.settings import WorkerSettings
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.client import SidecacheClient
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cache import open_sidecar
from tests.fixtures.stack import scripted_stack
from tests.integration.test_cache_operator import command

SYSTEM = "You answer questions about ships, harbours and the sea, in one short sentence. " * 8
QUESTION = "What does the harbour master of a small Ünïcödé town do at 5:30 in the morning?"


async def test_a_real_workers_ids_and_blocks_are_known(tmp_path: Path, smollm2_path: Path) -> None:
    """The sidecar's ids are the worker's own, and after one answer it holds the prompt's blocks."""
    telemetry = Telemetry.start("sidecache-worker", TelemetrySettings(log_level="ERROR"))
    settings = WorkerSettings(model_path=smollm2_path)
    off, patient = {"enabled": False}, {"min_backoff_s": 0.01, "budget_s": 20.0}
    async with (
        serve(settings, telemetry) as worker,
        open_sidecar(tmp_path, semantic=off, prefix=patient) as sidecar,
        SidecacheClient(worker.address) as direct,
    ):
        targets = [cache_pb2.WorkerTarget(address=worker.address)]
        await sidecar.stub.SetWorkers(cache_pb2.SetWorkersRequest(router="r", workers=targets))
        while not (await sidecar.stats()).prefix_workers_followed:
            await asyncio.sleep(0.02)
        turns = [("system", SYSTEM), ("user", QUESTION)]
        messages = [pb.ChatMessage(role=role, content=text) for role, text in turns]
        (model,) = await direct.models()
        query = cache_pb2.PrefixQuery(
            chat=pb.Chat(messages=messages), model=model.name, model_revision=model.revision
        )
        request = cache_pb2.LookupRequest(prefix=query)
        before = (await sidecar.stub.Lookup(request)).miss.prefix
        assert not before.held
        await direct.complete(messages, max_tokens=2)
        own = pb.TokenizeRequest(chat=query.chat)
        async with grpc.aio.insecure_channel(worker.address) as channel:
            call = channel.unary_unary(
                "/sidecache.v1.InferenceService/Tokenize",
                request_serializer=pb.TokenizeRequest.SerializeToString,
                response_deserializer=pb.TokenizeResponse.FromString,
            )
            ids = list((await call(own)).token_ids)
        assert list(before.prompt_token_ids.ids) == ids
        while not (held := (await sidecar.stub.Lookup(request)).miss.prefix.held):
            await asyncio.sleep(0.02)
        assert held[0].worker == worker.address
        # The block of the last prompt token may wait for the answer to fill it.
        assert before.prompt_blocks - 1 <= held[0].blocks <= before.prompt_blocks
        assert before.prompt_blocks >= 5
    await telemetry.aclose()


async def test_a_warmed_system_prompt_is_there_for_the_first_to_ask(
    tmp_path: Path, smollm2_path: Path
) -> None:
    """`sidecache cache warm` on the real engine: the first chat computes only its own part."""
    telemetry = Telemetry.start("sidecache-worker", TelemetrySettings(log_level="ERROR"))
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM)
    async with (
        serve(WorkerSettings(model_path=smollm2_path), telemetry) as worker,
        scripted_stack(tmp_path, workers=(), router_={"workers": [worker.address]}) as stack,
    ):
        code, out, _ = await command(
            stack, "warm", str(file), "--system", "--tenant", "acme", "--json"
        )
        assert code == 0
        (warmed,) = json.loads(out)["workers"]
        assert int(warmed["cachedTokensBefore"]) == 0
        assert warmed["cachedTokensEstimated"]
        # The last token of a prompt that is held is computed again.
        assert int(warmed["cachedTokensAfter"]) == warmed["promptTokens"] - 1
        turns = [("system", SYSTEM), ("user", QUESTION)]
        messages = [pb.ChatMessage(role=role, content=text) for role, text in turns]
        usage = (await stack.client.complete(messages, max_tokens=2)).usage
        assert usage.cached_prompt_tokens_estimated
        # All whole blocks but the one in which the question's text begins.
        assert usage.cached_prompt_tokens >= (warmed["promptTokens"] - 8) // 32 * 32 - 32
        assert usage.cached_prompt_tokens < usage.prompt_tokens - 8
    await telemetry.aclose()
