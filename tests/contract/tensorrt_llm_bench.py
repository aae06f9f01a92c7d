"""A TensorRT-LLM engine on its strict fake, with everything a test wants to look at."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from inference_svc.engines.tensorrt_llm import TensorRtLlmEngine
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from inference_svc.slots import Slots
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from sidecache.kv_blocks import BlockHasher
from tests.contract.engines import MAX_SEQUENCES, MAX_WAITING, Subject
from tests.fakes.tensorrt_llm.llm import FakeLLM, Script
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm
from tests.fixtures.checkpoint import readable_tokens

QUESTION = "Write a short poem about the sea."
LONG = QUESTION * 40
FAST = {"feed_timeout_s": 0.05}


class Holder:
    """Remembers which names a listener was told are held."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.cleared = 0

    def __call__(self, event: KvEvent) -> None:
        match event:
            case BlocksStored(hashes, parent):
                assert parent is None or parent in self.held
                self.held |= set(hashes)
            case BlocksRemoved(hashes):
                self.held -= set(hashes)
            case CacheCleared():
                self.held.clear()
                self.cleared += 1


class Bench:
    """An engine on its fake; inside the block it is loaded."""

    def __init__(self, folder: Path, script: Script | None = None, **settings: Any) -> None:
        script = script or Script()
        if script.tokens == Script.tokens:
            script = replace(script, tokens=readable_tokens(folder))
        self.fake = FakeTensorRtLlm(script)
        self.holder = Holder()
        self.engine = TensorRtLlmEngine(
            folder,
            "fake",
            TensorRtLlmSettings(**{**FAST, **settings}),
            Slots(MAX_SEQUENCES, MAX_WAITING),
            lambda: TensorRtLlmApi(self.fake.import_module),
        )
        self.engine.listen_kv(self.holder)
        self.subject = Subject(self.engine, lambda _: "")

    @property
    def llm(self) -> FakeLLM:
        return self.fake.llms[-1]

    async def __aenter__(self) -> Self:
        await self.engine.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.aclose()


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for another thread's doing."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def names(prompt: list[int], salt: str = "", adapter: str = "") -> list[int]:
    """The names of a prompt's blocks; the engine never stores the last token."""
    return BlockHasher(32, adapter, salt).hashes(prompt[:-1])
