"""What only the real engine can show: batching, text of a real tokenizer, grammars, death."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import perf_counter

import pytest

from inference_svc.byte_level import ByteLevelDecoder
from inference_svc.engine import (
    Chat,
    ChatMessage,
    FinishReason,
    GenerationRequest,
    Guided,
    TokenDelta,
)
from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.settings import OpenVinoSettings
from inference_svc.slots import Slots
from sidecache.errors import EngineFailed, InvalidRequest, SetupError
from tests.contract.engines import Answer, Subject, collect, openvino, real
from tests.unit.inference_svc.grammars import GOOD_PATTERNS, GOOD_SCHEMAS

__all__ = ["real"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTIONS = (
    "Write a short poem about the sea.",
    "What is two plus two?",
    "Say good morning in Japanese.",
    "Why is the sky blue?",
    "Name three colours.",
    "Explain how a bicycle works.",
    "Tell me a joke about cats.",
    "What is the capital of France?",
)
CORPUS = (
    "plain words, and  two  spaces",
    "naïve café — “quotes” … ½ ²",
    "日本語のテキストと한국어 그리고 中文",
    "عربى و עברית ไทย हिन्दी",
    "😀👩‍👩‍👧‍👦🇩🇪🏳️‍🌈",
    "tabs\tand\r\nlines\n\n  def f(x):\n    return x  # 12345.678",
    " leading and trailing ",
)


class Meeting:
    """Lets streams run until all of them are in the middle of their answers."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self.all_here = asyncio.Event()

    def arrive(self) -> None:
        self._missing -= 1
        if not self._missing:
            self.all_here.set()


async def test_overlapping_streams_equal_their_solo_runs(real: Subject) -> None:
    """Eight run at once, one joins in the middle, one is cancelled: each is as if alone."""
    solo = [await real.ask(question, 24) for question in QUESTIONS]
    latecomer = await real.ask("Where does the sun rise?", 24)
    meeting = Meeting(len(QUESTIONS))
    most_running = 0

    async def watch(deltas: AsyncIterator[TokenDelta], answer: Answer) -> None:
        nonlocal most_running
        async for delta in deltas:
            answer.deltas.append(delta)
            most_running = max(most_running, real.engine.load_figures().running_sequences)
            if len(answer.deltas) == 3:
                meeting.arrive()

    async def stream(question: str) -> Answer:
        answer = Answer()
        async with real.engine.submit(await real.request(question, 24)) as deltas:
            await watch(deltas, answer)
        return answer

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(question)) for question in QUESTIONS]
        await meeting.all_here.wait()
        assert real.engine.load_figures().running_sequences == len(QUESTIONS)
        joined = group.create_task(stream("Where does the sun rise?"))
        tasks[3].cancel()
    assert most_running >= len(QUESTIONS)
    assert tasks[3].cancelled()
    for index, task in enumerate(tasks):
        if index != 3:
            assert task.result().ids() == solo[index].ids(), QUESTIONS[index]
            assert task.result().text() == solo[index].text()
    assert joined.result().ids() == latecomer.ids()


async def test_a_cold_prefix_is_computed_once(real: Subject) -> None:
    """Four requests with one long new prefix cost little more than one."""

    async def timed(story: str, count: int) -> float:
        requests = [await real.request(f"{story} Question {i}?", 1) for i in range(count)]
        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(_run(real, request))
        return perf_counter() - began

    alone = await timed("One day a fox met a crow. " * 80, 1)
    together = await timed("At night an owl saw a mouse. " * 80, 4)
    assert together < 2.5 * alone


async def _run(real: Subject, request: GenerationRequest) -> Answer:
    async with real.engine.submit(request) as deltas:
        return await collect(deltas)


@pytest.mark.parametrize("text", CORPUS)
async def test_any_language_comes_out_token_by_token(
    real: Subject, smollm2_path: Path, text: str
) -> None:
    """Decoded token by token, text is exact and never shows half a character."""
    tokenizer = GgufTokenizer(read_gguf(smollm2_path))
    ids = await real.engine.tokenize(text)
    decoder = ByteLevelDecoder(tokenizer.vocabulary)
    parts = [decoder.push([token_id]) for token_id in ids]
    assert "".join(parts) + decoder.flush() == text
    assert not any("\ufffd" in part for part in parts)
    assert tokenizer.decode(ids) == text


async def test_the_chat_template_is_the_models_own(real: Subject, smollm2_path: Path) -> None:
    """Roles are marked as the model was trained, with its default system turn."""
    tokenizer = GgufTokenizer(read_gguf(smollm2_path))
    ids = await real.engine.tokenize(Chat((ChatMessage("user", "hi"),)))
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == tokenizer.encode(text)
    assert ids[0] == 1  # <|im_start|> is one special token, not its letters


async def test_an_answer_that_ends_by_itself(real: Subject) -> None:
    """The end-of-sequence token ends the stream with STOP and has no text."""
    answer = await real.ask("What is the capital of France?", 200)
    assert answer.reason() is FinishReason.STOP
    assert answer.ids()[-1] == 2
    assert "<|im_end|>" not in answer.text()


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
async def test_every_accepted_pattern_is_followed(real: Subject, pattern: str) -> None:
    """A complete guided answer matches; nothing the check lets through hurts the engine."""
    answer = await real.ask("Give an example.", 24, guided=Guided("regex", pattern))
    if answer.reason() is FinishReason.STOP:
        assert re.fullmatch(pattern, answer.text()), answer.text()


@pytest.mark.parametrize("schema", GOOD_SCHEMAS)
async def test_every_accepted_schema_is_followed(real: Subject, schema: dict[str, object]) -> None:
    """A complete guided answer is JSON of the schema's type."""
    answer = await real.ask(
        "Give an example.", 32, guided=Guided("json_schema", json.dumps(schema))
    )
    if answer.reason() is FinishReason.STOP:
        value = json.loads(answer.text())
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
        expected = kinds.get(str(schema.get("type")))
        assert expected is None or isinstance(value, expected)


async def test_a_grammar_that_does_not_compile_hurts_nobody(real: Subject) -> None:
    """It is refused before the engine sees it, and others go on."""
    with pytest.raises(InvalidRequest, match=r"guided\.regex"):
        await real.ask("Hi.", 8, guided=Guided("regex", "[0-9{3}-("))
    assert len((await real.ask("Hi.", 2)).ids()) == 2


async def test_cancel_takes_one_step(real: Subject) -> None:
    """From leaving to a free slot: at most one step and 100 ms, beside seven others."""
    requests = [await real.request(question, 400) for question in QUESTIONS]
    slowest = longest_step = 0.0

    async def neighbour(request: GenerationRequest) -> None:
        nonlocal longest_step
        async with real.engine.submit(request) as deltas:
            await anext(deltas)
            began = perf_counter()
            async for _ in deltas:
                longest_step = max(longest_step, perf_counter() - began)
                began = perf_counter()

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(neighbour(request)) for request in requests[1:]]
        for _ in range(5):
            async with real.engine.submit(requests[0]) as deltas:
                await anext(deltas)
                await anext(deltas)
                running = real.engine.load_figures().running_sequences
            began = perf_counter()
            while real.engine.load_figures().running_sequences >= running:
                await asyncio.sleep(0.001)
            slowest = max(slowest, perf_counter() - began)
        for other in others:
            other.cancel()
    assert slowest <= longest_step + 0.1


async def test_a_dead_engine_is_told_and_survived(smollm2_path: Path) -> None:
    """Killed in the middle, it fails every stream with EngineFailed, and later ones too."""
    async with openvino(smollm2_path, Slots(2, 4)) as subject:
        engine = subject.engine
        assert isinstance(engine, OpenVinoEngine)
        requests = [await subject.request(question, 4000) for question in QUESTIONS[:4]]
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            tasks = [group.create_task(_outcome(subject, request)) for request in requests]
            while engine.load_figures().waiting_sequences < 2:
                await asyncio.sleep(0)
            os.kill(engine.pid, signal.SIGKILL)
        assert all("SIGKILL" in task.result().text for task in tasks)
        assert "SIGKILL" in (await engine.wait_failed()).text
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await subject.ask("Hi.")
        assert engine.load_figures().running_sequences == 0


async def _outcome(subject: Subject, request: GenerationRequest) -> EngineFailed:
    with pytest.raises(EngineFailed) as failed:
        await _run(subject, request)
    return failed.value


async def load(path: Path) -> None:
    engine = OpenVinoEngine(path, "m", OpenVinoSettings(), Slots(1, 1))
    try:
        await engine.load()
    finally:
        await engine.aclose()


def copy_of(path: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    target.write_bytes(change(path.read_bytes()))
    return target


async def test_a_truncated_model_is_refused(smollm2_path: Path, tmp_path: Path) -> None:
    """Half a download names the file and what to do, and the native code never sees it."""
    path = copy_of(smollm2_path, tmp_path / "half.gguf", lambda whole: whole[:50_000_000])
    with pytest.raises(SetupError, match=r"half\.gguf.*truncated.*sidecache pull"):
        await load(path)


async def test_a_model_that_kills_the_native_loader_is_refused(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """A file whose header is fine but whose tensors are not is still only a SetupError."""
    lie = (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    path = copy_of(smollm2_path, tmp_path / "lies.gguf", lambda whole: whole.replace(*lie, 1))
    with pytest.raises(SetupError, match=r"lies\.gguf could not be loaded"):
        await load(path)


_AUDITED = """
import runpy, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("NETWORK", event, args, file=sys.stderr, flush=True)
sys.addaudithook(hook)
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def test_the_engine_phones_nobody(smollm2_path: Path) -> None:
    """From import to the last token the stepping process opens no connection."""
    program = Path(sys.modules[OpenVinoEngine.__module__].__file__ or "")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _AUDITED, str(program.with_name("openvino_process.py")),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    config = {
        "model_path": str(smollm2_path), "cache_gib": 1, "kv_blocks": 0, "device": "CPU",
        "max_num_batched_tokens": 256, "max_num_seqs": 4, "generation": {},
        "properties": OpenVinoSettings().properties(), "prompt_lookup": False, "draft_model": None,
    }  # fmt: skip
    commands = [config, {"add": 1, "prompt": [1, 2, 3], "config": {"max_new_tokens": 5}}]
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in commands))
    async with asyncio.timeout(60):
        while b'"LENGTH"' not in (line := await process.stdout.readline()):
            assert line, "the process ended early"
        process.stdin.close()
        errors = await process.stderr.read()
        await process.wait()
    assert b"NETWORK" not in errors, errors
    assert process.returncode == 0
