"""The engines that pass the contract suite, each ready to be asked."""

import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inference_svc.engine import (
    Chat,
    ChatMessage,
    Engine,
    FinishReason,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.engines.scripted import ScriptedEngine, scripted_text
from inference_svc.engines.tensorrt_llm import TensorRtLlmEngine
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.kv_ledger import KvLedger
from inference_svc.settings import OpenVinoSettings, ScriptedSettings
from inference_svc.slots import Slots
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from tests.fakes.tensorrt_llm.llm import Script
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm
from tests.fixtures.checkpoint import readable_tokens

MAX_SEQUENCES = 10
MAX_WAITING = 2


@dataclass
class Subject:
    """One engine under test.

    Attributes:
        decode: what the model's tokenizer makes of all ids of an answer at once.
        kv: has listened to the engine since before it was loaded.
    """

    engine: Engine
    decode: Callable[[Sequence[int]], str]
    kv: KvLedger = field(default_factory=KvLedger)

    async def settle(self) -> None:
        """Return when everything the engine has told so far was heard."""

    async def ask(self, question: str, max_tokens: int = 24, **more: Any) -> "Answer":
        """Run one chat to its end."""
        async with self.engine.submit(await self.request(question, max_tokens, **more)) as deltas:
            return await collect(deltas)

    async def request(self, question: str, max_tokens: int = 24, **more: Any) -> GenerationRequest:
        """A request for the answer to one question."""
        prompt = await self.engine.tokenize(Chat((ChatMessage("user", question),)))
        return GenerationRequest("test", tuple(prompt), max_tokens, **more)


@dataclass
class Answer:
    """What a stream said about choice 0, and all the deltas as they came."""

    deltas: list[TokenDelta] = field(default_factory=list)

    def of(self, choice: int) -> list[TokenDelta]:
        return [delta for delta in self.deltas if delta.choice == choice]

    def ids(self, choice: int = 0) -> list[int]:
        return [token_id for delta in self.of(choice) for token_id in delta.token_ids]

    def text(self, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.of(choice))

    def logprobs(self, choice: int = 0) -> list[TokenLogprob]:
        return [each for delta in self.of(choice) for each in delta.logprobs]

    def cached(self) -> int | None:
        """What the first delta says was cached of the prompt; no other may say it."""
        assert self.cached_ever() == self.deltas[0].cached_prompt_tokens
        return self.deltas[0].cached_prompt_tokens

    def cached_ever(self) -> int | None:
        """The same of an engine that may hear it late; one delta at most says it."""
        told = [each.cached_prompt_tokens for each in self.deltas]
        told = [each for each in told if each is not None]
        assert len(told) <= 1
        return told[0] if told else None

    def reason(self, choice: int = 0) -> FinishReason | None:
        return self.of(choice)[-1].finish_reason


async def collect(deltas: AsyncIterator[TokenDelta]) -> Answer:
    """Read a stream to its end, checking what every stream promises."""
    answer = Answer()
    next_offset: dict[int, int] = {}
    ended: set[int] = set()
    async for delta in deltas:
        assert delta.choice not in ended, "a choice went on after its finish reason"
        offset = next_offset.setdefault(delta.choice, delta.offset)
        assert delta.offset == offset, "a gap or a repeat"
        next_offset[delta.choice] += len(delta.token_ids)
        if delta.finish_reason is not None:
            ended.add(delta.choice)
        answer.deltas.append(delta)
    assert ended == next_offset.keys(), "a choice without an end"
    return answer


@asynccontextmanager
async def scripted(
    settings: ScriptedSettings | None = None, slots: Slots | None = None
) -> AsyncIterator[Subject]:
    """A scripted engine of its own."""
    engine = ScriptedEngine(
        settings or ScriptedSettings(tokens_per_s=2000), slots or Slots(MAX_SEQUENCES, MAX_WAITING)
    )
    ledger = KvLedger()
    engine.listen_kv(ledger.record)
    await engine.load()
    yield Subject(engine, lambda ids: "".join(map(scripted_text, ids)), ledger)
    await engine.aclose()


@asynccontextmanager
async def openvino(
    path: Path, slots: Slots | None = None, settings: OpenVinoSettings | None = None
) -> AsyncIterator[Subject]:
    """The real model in an engine of its own; costs seconds."""
    tokenizer = GgufTokenizer(read_gguf(path))
    engine = OpenVinoEngine(
        path, "smollm2", settings or OpenVinoSettings(), slots or Slots(MAX_SEQUENCES, MAX_WAITING)
    )
    ledger = KvLedger()
    engine.listen_kv(ledger.record)
    await engine.load()
    yield Subject(engine, lambda ids: tokenizer.decode(list(ids)), ledger)
    await engine.aclose()


@asynccontextmanager
async def tensorrt_llm(
    folder: Path,
    script: Script | None = None,
    settings: TensorRtLlmSettings | None = None,
    slots: Slots | None = None,
) -> AsyncIterator[Subject]:
    """A TensorRT-LLM engine of its own, on the strict fake."""
    fake = FakeTensorRtLlm(script or Script(tokens=readable_tokens(folder)))
    engine = TensorRtLlmEngine(
        folder,
        "fake",
        settings or TensorRtLlmSettings(seeded_sampling=True, max_top_logprobs=5),
        slots or Slots(MAX_SEQUENCES, MAX_WAITING),
        lambda: TensorRtLlmApi(fake.import_module),
    )
    ledger = KvLedger()
    engine.listen_kv(ledger.record)
    try:
        await engine.load()
        yield Subject(engine, HfTokenizer(folder).decode, ledger)
    finally:
        await engine.aclose()


# Each with the package it needs; the package vllm has an environment of its own.
# TensorRT-LLM is tried on a strict fake, which needs the tokenizer's library only.
_ENGINES = {
    "scripted": "sidecache",
    "openvino": "openvino_genai",
    "vllm": "vllm",
    "tensorrt_llm": "tokenizers",
    "remote": "xllamacpp",
    "remote_vllm": "vllm",
}
INSTALLED = [name for name, package in _ENGINES.items() if importlib.util.find_spec(package)]
# No server of OpenAI's interface tells what its KV cache holds.
TELLING_KV = [name for name in INSTALLED if not name.startswith("remote")]


@pytest.fixture(scope="session", params=INSTALLED)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each engine in turn."""
    chosen = request.getfixturevalue(f"{request.param}_subject")
    assert isinstance(chosen, Subject)
    return chosen


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scripted_subject() -> AsyncIterator[Subject]:
    """The scripted engine."""
    async with scripted() as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def openvino_subject(smollm2_path: Path) -> AsyncIterator[Subject]:
    """The real model on OpenVINO."""
    async with openvino(smollm2_path) as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tensorrt_llm_subject(checkpoint_folder: Path) -> AsyncIterator[Subject]:
    """TensorRT-LLM's engine on the strict fake."""
    async with tensorrt_llm(checkpoint_folder) as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real(smollm2_path: Path) -> AsyncIterator[Subject]:
    """The real model."""
    async with openvino(smollm2_path) as engine:
        yield engine
