"""vLLM at the end of the whole path: router and worker, real servers, over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest

import router.serve
from inference_svc.engines.vllm import VllmEngine
from inference_svc.kv_events import KvEvent
from inference_svc.kv_ledger import KvLedger
from inference_svc.serve import serve_engine
from inference_svc.settings import WorkerSettings
from observability.settings import ServerSettings
from router.settings import RouterSettings
from sidecache.client import SidecacheClient
from sidecache.kv_blocks import BlockHasher, unpack_hashes
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.fixtures.stack import KEYS, quiet_telemetry, write_keys
from tests.fixtures.vllm import BLOCK_SIZE, VllmSubject

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "Write a short poem about the sea."


@asynccontextmanager
async def served(subject: VllmSubject, folder: Path) -> AsyncIterator[tuple[str, SidecacheClient]]:
    """The worker's address, and a client of the router in front of it."""
    async with AsyncExitStack() as stack:
        telemetry = quiet_telemetry("sidecache-test")
        stack.push_async_callback(telemetry.aclose)
        # A worker's ledger ends with its server; the engine's other listener stays.
        ledger = KvLedger()

        def record(event: KvEvent) -> None:
            ledger.record(event)
            subject.kv.record(event)

        subject.engine.listen_kv(record)
        stack.callback(subject.engine.listen_kv, subject.kv.record)
        settings = WorkerSettings(name="w1", engine="vllm", server=ServerSettings())
        worker = await stack.enter_async_context(
            serve_engine(subject.engine, settings, telemetry, ledger)
        )
        front = RouterSettings(
            server=ServerSettings(),
            workers=[worker.address],
            keys_file=write_keys(folder / "keys.toml"),
        )
        running = await stack.enter_async_context(router.serve.serve(front, telemetry))
        client = SidecacheClient(running.address, api_key=KEYS["acme"])
        yield worker.address, await stack.enter_async_context(client)


async def test_greedy_text_is_the_engines_own(vllm_subject: VllmSubject, tmp_path: Path) -> None:
    """Through router and worker the same tokens and text come as from the engine itself."""
    own = await vllm_subject.ask(QUESTION, 24)
    async with served(vllm_subject, tmp_path) as (_, client):
        answer = await client.complete(QUESTION, max_tokens=24)
    assert list(answer.token_ids) == own.ids()
    assert answer.text == own.text()


async def test_a_cancel_through_the_router_frees_the_slot(
    vllm_subject: VllmSubject, tmp_path: Path
) -> None:
    """A caller that leaves in the middle frees the engine's slot."""
    async with served(vllm_subject, tmp_path) as (_, client):
        async with client.generate(QUESTION, max_tokens=2000) as stream:
            async for event in stream:
                if event.HasField("delta"):
                    break
            assert vllm_subject.engine.load_figures().running_sequences == 1
        async with asyncio.timeout(2):
            while vllm_subject.engine.load_figures().running_sequences:
                await asyncio.sleep(0.001)


async def test_kv_events_reach_a_follower(vllm_subject: VllmSubject, tmp_path: Path) -> None:
    """The worker's gRPC tells the blocks of a prompt by the names that a sidecar computes."""
    assert isinstance(vllm_subject.engine, VllmEngine)
    ids = [(71 * place) % 30_000 + 200 for place in range(3 * BLOCK_SIZE + 1)]
    wanted = set(BlockHasher(BLOCK_SIZE).hashes(ids))
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), max_tokens=2)
    seen: set[int] = set()
    async with (
        served(vllm_subject, tmp_path) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = worker_pb2_grpc.WorkerServiceStub(channel).SubscribeKvEvents(
            worker_pb2.SubscribeKvEventsRequest(), timeout=30
        )
        reading = asyncio.create_task(follow(call, wanted, seen))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async for _event in stub.Generate(request, timeout=30):
            pass
        await reading
        call.cancel()
    assert wanted <= seen


async def follow(call: object, wanted: set[int], seen: set[int]) -> None:
    async for event in call:  # type: ignore[attr-defined]
        seen.update(unpack_hashes(event.snapshot.block_hashes))
        seen.update(unpack_hashes(event.stored.block_hashes))
        if wanted <= seen:
            return
