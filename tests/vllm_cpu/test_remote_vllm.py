"""The remote engine's dialect for vLLM, on vLLM's own server."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inference_svc.engine import FinishReason, GenerationRequest, Guided, Sampling
from inference_svc.slots import Slots
from sidecache.errors import InvalidRequest, SetupError
from tests.contract.engines import MAX_SEQUENCES, Answer, Subject, collect
from tests.fixtures.llama_server import remote
from tests.fixtures.tiny_llama import ADAPTER
from tests.fixtures.vllm import VllmSubject
from tests.fixtures.vllm_server import BLOCK_SIZE, MODEL, VllmServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "Write a short poem about the sea."
LIMIT = MAX_SEQUENCES + 4


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def subject(vllm_server: VllmServer, tiny_llama: Path) -> AsyncIterator[Subject]:
    """A remote engine that may ask for more at once than the server runs."""
    async with remote(
        vllm_server.base_url,
        tiny_llama,
        Slots(LIMIT, 0),
        model=MODEL,
        priorities=True,
        adapters={ADAPTER: ADAPTER},
    ) as subject:
        yield subject


def prompt(first: int, count: int) -> tuple[int, ...]:
    """Ids that no other test's prompt begins with."""
    return tuple((first * 7907 + 37 * place) % 40_000 + 100 for place in range(count))


async def run(subject: Subject, ids: tuple[int, ...], tokens: int = 8, **more: Any) -> Answer:
    async with subject.engine.submit(GenerationRequest("t", ids, tokens, **more)) as deltas:
        return await collect(deltas)


async def running(server: VllmServer, wanted: int) -> None:
    """Wait until the server itself runs so many sequences."""
    async with asyncio.timeout(5):
        while await asyncio.to_thread(server.figure, "vllm:num_requests_running") != wanted:
            await asyncio.sleep(0.02)


async def test_its_tokens_are_vllms_own(subject: Subject, vllm_subject: VllmSubject) -> None:
    """Prompt and answer go by token ids: the same as from a vLLM of our own, offset by offset."""
    for n, more in enumerate(({}, {"sampling": Sampling(temperature=0.8, top_k=20, seed=3)})):
        ids = prompt(20 + n, 40)
        theirs, ours = await run(subject, ids, 24, **more), await run(vllm_subject, ids, 24, **more)
        assert theirs.ids() == ours.ids()
        assert theirs.text() == ours.text()


async def test_cached_tokens_are_read_from_its_usage(subject: Subject) -> None:
    """Of a prompt that comes again, whole blocks are cached; a salt keeps callers apart."""
    ids = prompt(1, 3 * BLOCK_SIZE + 1)
    answers = [await run(subject, ids, cache_salt=salt) for salt in ("acme", "umbrella", "acme")]
    assert [each.cached_ever() for each in answers] == [0, 0, 3 * BLOCK_SIZE]


async def test_an_adapter_is_a_model_of_the_server(subject: Subject) -> None:
    """A LoRA adapter by its name changes the answer."""
    ids = prompt(2, 40)
    plain, adapted = await run(subject, ids, 16), await run(subject, ids, 16, adapter=ADAPTER)
    assert adapted.ids() != plain.ids()


@pytest.mark.parametrize("pattern", ["[0-9]{3}-[0-9]{4}", "(yes|no|maybe)"])
async def test_a_pattern_is_followed(subject: Subject, pattern: str) -> None:
    """A guided answer matches, even where the model only babbles."""
    answer = await run(subject, prompt(3, 9), 24, guided=Guided("regex", pattern))
    assert answer.reason() is FinishReason.STOP
    assert re.fullmatch(pattern, answer.text())


async def test_a_schema_is_followed(subject: Subject) -> None:
    """A guided answer is JSON of the schema."""
    schema = {
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": False,
    }  # fmt: skip
    guided = Guided("json_schema", json.dumps(schema))
    answer = await run(subject, prompt(4, 9), 200, guided=guided)
    assert answer.reason() is not FinishReason.STOP or set(json.loads(answer.text())) == {"ok"}
    assert answer.text().lstrip().startswith("{")


# Sleeps 10 ms at a time; at the end of its input it says how late it ever was, in seconds.
SLEEPER = """
import select, sys, time
latest, before = 0.0, time.perf_counter()
while not select.select([sys.stdin], [], [], 0.01)[0]:
    now = time.perf_counter()
    latest, before = max(latest, now - before), now
print(latest)
"""


async def test_a_busy_vllm_leaves_others_their_share(subject: Subject) -> None:
    """On cores that it fills, who only wants a moment now and then gets it, not 18 s later."""
    pipe = asyncio.subprocess.PIPE
    sleeper = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLEEPER, stdin=pipe, stdout=pipe
    )
    await run(subject, prompt(9, 5), 3000)
    said, _ = await sleeper.communicate(b"enough")
    assert float(said) < 2.0


async def test_leaving_frees_the_servers_slot(subject: Subject, vllm_server: VllmServer) -> None:
    """A reader that leaves, in the middle or before the first token, is gone from its batch."""
    request = GenerationRequest("t", prompt(5, 9), 3000)
    async with subject.engine.submit(request) as deltas:
        await anext(deltas)
        await running(vllm_server, 1)
    await running(vllm_server, 0)
    async with subject.engine.submit(request) as deltas:
        reading = asyncio.ensure_future(anext(deltas))
        await running(vllm_server, 1)
    reading.cancel()
    await running(vllm_server, 0)


async def test_higher_priority_waits_less(subject: Subject, vllm_server: VllmServer) -> None:
    """Of two that wait in the server for a slot, the one of higher priority gets it first."""
    order: list[str] = []

    async def late(name: str, priority: int) -> None:
        request = GenerationRequest(name, prompt(6, 5), 2, priority=priority)
        async with subject.engine.submit(request) as deltas:
            await anext(deltas)
            order.append(name)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        # Of the highest, or vLLM would set one of them aside for the others.
        hold = GenerationRequest("hold", prompt(7, 5), 3000, priority=9)
        streams = [subject.engine.submit(hold) for _ in range(MAX_SEQUENCES)]
        for stream in streams:
            await anext(await stack.enter_async_context(stream))
        for number, (name, priority) in enumerate((("low", 0), ("high", 5)), 1):
            group.create_task(late(name, priority))
            async with asyncio.timeout(5):
                while (
                    await asyncio.to_thread(vllm_server.figure, "vllm:num_requests_waiting")
                    != number
                ):
                    await asyncio.sleep(0.02)
        await stack.aclose()
    assert order == ["high", "low"]


async def test_what_it_refuses_is_the_callers(subject: Subject) -> None:
    """A value that only vLLM objects to is an invalid request that says why."""
    with pytest.raises(InvalidRequest, match="presence_penalty"):
        await run(subject, prompt(8, 5), sampling=Sampling(presence_penalty=9))
    assert not subject.engine.load_figures().running_sequences


async def test_a_wrong_name_is_told_at_the_start(vllm_server: VllmServer, tiny_llama: Path) -> None:
    """Which models the server has stands in the error."""
    with pytest.raises(SetupError, match=f"no model 'other', only {ADAPTER}, {MODEL}"):
        async with remote(vllm_server.base_url, tiny_llama, model="other"):
            pass


async def test_what_it_is_stands_in_the_facts(subject: Subject) -> None:
    """Priorities, salts and the context's length are claimed as the server has them."""
    facts = subject.engine.facts
    assert facts.build == "vllm server of vllm"
    assert facts.context_length == 4096
    assert facts.capabilities.priorities
    assert facts.capabilities.cache_salt
    assert facts.adapters == (ADAPTER,)
