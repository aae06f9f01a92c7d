"""The engines that pass the contract suite, each ready to be asked."""

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
    """

    engine: Engine
    decode: Callable[[Sequence[int]], str]

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
    await engine.load()
    yield Subject(engine, lambda ids: "".join(map(scripted_text, ids)))
    await engine.aclose()


@asynccontextmanager
async def openvino(path: Path, slots: Slots | None = None) -> AsyncIterator[Subject]:
    """The real model in an engine of its own; costs seconds."""
    tokenizer = GgufTokenizer(read_gguf(path))
    engine = OpenVinoEngine(
        path, "smollm2", OpenVinoSettings(), slots or Slots(MAX_SEQUENCES, MAX_WAITING)
    )
    await engine.load()
    yield Subject(engine, lambda ids: tokenizer.decode(list(ids)))
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
    try:
        await engine.load()
        yield Subject(engine, HfTokenizer(folder).decode)
    finally:
        await engine.aclose()


@pytest_asyncio.fixture(
    scope="session", loop_scope="session", params=["scripted", "openvino", "tensorrt_llm"]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Each engine in turn."""
    if request.param == "scripted":
        async with scripted() as engine:
            yield engine
    elif request.param == "tensorrt_llm":
        async with tensorrt_llm(request.getfixturevalue("checkpoint_folder")) as engine:
            yield engine
    else:
        async with openvino(request.getfixturevalue("smollm2_path")) as engine:
            yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real(smollm2_path: Path) -> AsyncIterator[Subject]:
    """The real model."""
    async with openvino(smollm2_path) as engine:
        yield engine
