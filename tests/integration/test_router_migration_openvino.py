"""Migration with the real model: the text a client gets is that of an unbroken run."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.kv_ledger import KvLedger
from inference_svc.reachable_blocks import ReachableBlocks
from inference_svc.serve import make_engine, serve_engine
from inference_svc.settings import WorkerSettings
from sidecache.client import CacheControl
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, quiet_telemetry, scripted_stack

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
QUESTIONS = (
    "Write a short poem about a river — with em dashes.",
    "List five French words with accents and what they mean.",
    "What is the capital of Japan? Answer in one sentence.",
)
MAX_TOKENS = 24


@asynccontextmanager
async def real_stack(
    folder: Path, model_path: Path, workers: int
) -> AsyncIterator[tuple[Stack, list[OpenVinoEngine]]]:
    """A router in front of real engines, each of which steps in a process of its own."""
    async with AsyncExitStack() as stack:
        engines, addresses = [], []
        for number in range(1, workers + 1):
            settings = WorkerSettings(name=f"w{number}", model_path=model_path)
            engine = make_engine(settings)
            assert isinstance(engine, OpenVinoEngine)
            ledger = KvLedger()
            engine.listen_kv(ReachableBlocks(ledger.record))
            stack.push_async_callback(engine.aclose)
            await engine.load()
            telemetry = quiet_telemetry("sidecache-worker")
            stack.push_async_callback(telemetry.aclose)
            server = await stack.enter_async_context(
                serve_engine(engine, settings, telemetry, ledger)
            )
            engines.append(engine)
            addresses.append(server.address)
        # A busy machine is slow, and slow is not hung.
        router = {"workers": addresses, "limits": {"token_silence_s": 60.0}}
        opened = scripted_stack(folder, workers=[], with_cache=False, router_=router)
        yield await stack.enter_async_context(opened), engines


@pytest.mark.timeout(300)  # two engines load, and then run side by side
async def test_the_real_models_answers_survive_a_killed_engine(
    tmp_path: Path, smollm2_path: Path
) -> None:
    """Streams that run side by side when their engine is killed end as if nothing had happened."""
    async with real_stack(tmp_path, smollm2_path, workers=2) as (stack, engines):
        client = stack.client
        expected = [
            await client.complete(question, max_tokens=MAX_TOKENS, cache=BYPASS)
            for question in QUESTIONS
        ]
        begun = asyncio.Semaphore(0)

        async def ask(question: str) -> tuple[list[int], str, int]:
            ids: list[int] = []
            text, moves = "", 0
            async with client.generate(question, max_tokens=MAX_TOKENS, cache=BYPASS) as stream:
                async for event in stream:
                    ids += event.delta.token_ids
                    text += event.delta.text
                    moves += event.HasField("migrated") and event.migrated.offset > 0
                    if event.delta.token_ids:
                        begun.release()
            return ids, text, moves

        asking = [asyncio.create_task(ask(question)) for question in QUESTIONS]
        for _ in range(6):
            await begun.acquire()
        os.kill(engines[0].pid, signal.SIGKILL)
        answers = await asyncio.gather(*asking)
        for (ids, text, _), whole in zip(answers, expected, strict=True):
            assert ids == whole.token_ids
            assert text == whole.text
        assert sum(moves for *_, moves in answers) >= 1
