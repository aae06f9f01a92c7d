"""What goes wrong in caches of this kind, tried on a whole stack with the real embedder.

The last message is the same, or says the same, and something else differs: nothing
may be served then. And where nothing differs, the answer must come: a cache that
never hits passes every trap.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecache.client import CacheControl, ChatMessage, Source
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cached import if_cached, obliging_worker, semantic_stack, until_cached
from tests.fixtures.stack import Stack

QUESTION = "What is the capital of France?"
PARAPHRASE = "What's the capital city of France?"


def talk(*turns: str, system: str = "") -> list[ChatMessage]:
    """A chat of user and assistant in turn, behind a system prompt if there is one."""
    roles = ("user", "assistant")
    messages = [ChatMessage(role=roles[n % 2], content=turn) for n, turn in enumerate(turns)]
    return [ChatMessage(role="system", content=system)] * bool(system) + messages


@pytest.fixture
async def stack(tmp_path: Path, minilm_path: Path) -> AsyncIterator[Stack]:
    """With a worker that takes tools, grammars and adapters."""
    async with obliging_worker() as worker:
        router_ = {"workers": [worker]}
        async with semantic_stack(tmp_path, minilm_path, workers=(), router_=router_) as stack:
            yield stack


# The history of the first, of the second, and the last turn of both.
SAME_LAST_TURN = [
    (("What is the dose of aspirin?", "500 mg."), ("What does a ticket cost?", "5 euros.")),
    (("What is the dose of aspirin?", "500 mg."), ("What is the dose of ibuprofen?", "400 mg.")),
    (("What is the dose of aspirin?", "500 mg."), ("What is the dose of aspirin?", "300 mg.")),
    (("Who wrote Faust?", "Goethe."), ("Who wrote Hamlet?", "Shakespeare.")),
    (("Let's talk about Python.", "Gladly."), ("Let's talk about pythons.", "Gladly.")),
    (("Hello.", "Hi!"), ("Hello.", "Hi!", "And?", "Go on.")),
]
LAST_TURNS = ["And for children?", "Why?", "When was he born?", "Do it again in French.", QUESTION]


async def test_the_same_last_message_after_another_history(stack: Stack) -> None:
    """One library's default serves 98 % of these; here none is, and each is a hit for itself."""
    for number, (one, two) in enumerate(SAME_LAST_TURN):
        # Each pair of conversations has a namespace to itself.
        own = {"cache": CacheControl(namespace=f"{number}")}
        for last in LAST_TURNS:
            assert (await until_cached(stack.client, talk(*one, last), **own)).text
            assert await if_cached(stack.client, talk(*two, last), **own) is None, (two, last)
            assert await if_cached(stack.client, talk(last), **own) is None, last
        assert await if_cached(stack.client, talk(*two, PARAPHRASE), **own) is None, two
        hit = await if_cached(stack.client, talk(*one, PARAPHRASE), **own)
        assert hit is not None
        assert hit.source is Source.SEMANTIC


async def test_a_turn_that_leans_is_served_to_its_own_words_only(stack: Stack) -> None:
    """Not even inside one conversation is "and for kids?" compared with "and for children?"."""
    history = ("What is the dose of aspirin?", "500 mg.")
    for last, alike in (
        ("And for children?", "And for the children?"),
        ("What about the second one?", "What about the 2nd one?"),
        ("Do it again in French.", "Do that again in French."),
        ("Can you explain it to a child?", "Could you explain it to a child?"),
    ):
        await until_cached(stack.client, talk(*history, last))
        assert await if_cached(stack.client, talk(*history, alike)) is None, alike
        assert await if_cached(stack.client, talk(*history, last)) is not None, last
        # A first turn has nothing to lean on: there, the same pair is compared.
    await until_cached(stack.client, talk("Can you explain it to a child?"))
    assert await if_cached(stack.client, talk("Could you explain it to a child?")) is not None


async def test_another_system_prompt(stack: Stack) -> None:
    """The system prompt is scope: none, another, or another of the same meaning share nothing."""
    brief = "Answer in one word."
    await until_cached(stack.client, talk(QUESTION, system=brief))
    for system in ("", "Answer as a pirate.", "Answer in a single word."):
        for text in (QUESTION, PARAPHRASE):
            assert await if_cached(stack.client, talk(text, system=system)) is None, system
    assert await if_cached(stack.client, talk(PARAPHRASE, system=brief)) is not None


SEARCH = pb.Tool(name="search", description="Search.", parameters_json_schema="{}")
OTHER_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tools or none": ({"tools": [SEARCH]}, {}),
    "none or tools": ({}, {"tools": [SEARCH]}),
    "a tool's schema": (
        {"tools": [SEARCH]},
        {"tools": [pb.Tool(name="search", description="Search.", parameters_json_schema="[]")]},
    ),
    "adapter": ({"adapter": "law"}, {"adapter": "medicine"}),
    "adapter or none": ({"adapter": "law"}, {}),
    "response format": ({"guided": pb.GuidedDecoding(json_schema='{"type": "object"}')}, {}),
    "another schema": (
        {"guided": pb.GuidedDecoding(json_schema='{"type": "object"}')},
        {"guided": pb.GuidedDecoding(json_schema='{"type": "array"}')},
    ),
    "schema or regex": (
        {"guided": pb.GuidedDecoding(json_schema='"a"')},
        {"guided": pb.GuidedDecoding(regex='"a"')},
    ),
    "max_tokens": ({"max_tokens": 8}, {"max_tokens": 9}),
    "choices": ({"n": 1}, {"n": 2}),
    "stop": ({"stop": ["."]}, {}),
    "seed": ({"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "seed": 2}),
    "temperature": ({"temperature": 1.0, "seed": 1}, {"temperature": 0.5, "seed": 1}),
    "penalty": ({"presence_penalty": 0.5}, {}),
    "namespace": ({"cache": CacheControl(namespace="a")}, {"cache": CacheControl(namespace="b")}),
}


async def test_other_options(stack: Stack) -> None:
    """Tools, adapter, response format, sampling and namespace are scope, for either tier."""
    for name, options in OTHER_OPTIONS.items():
        # Each pair has a namespace to itself.
        one, two = ({"cache": CacheControl(namespace=name)} | each for each in options)
        await until_cached(stack.client, QUESTION, **one)
        for text in (QUESTION, PARAPHRASE):
            assert await if_cached(stack.client, text, **two) is None, name
        # No key so narrow that nothing ever hits: here, only the words differ.
        hit = await if_cached(stack.client, PARAPHRASE, **one)
        assert hit is not None, name
        assert hit.source is Source.SEMANTIC, name


async def test_another_tenant_never_hits_softly(stack: Stack) -> None:
    """However near the prompt: another tenant's answer is not there, over either tier."""
    await until_cached(stack.client, QUESTION)
    async with stack.connect("umbrella") as other, stack.connect("operator") as operator:
        for client in (other, operator):
            for text in (QUESTION, PARAPHRASE):
                for cache in (CacheControl(), CacheControl(min_similarity=0.0)):
                    assert await if_cached(client, text, cache=cache) is None
    assert await if_cached(stack.client, PARAPHRASE) is not None


async def test_a_semantic_hit_is_replayed_as_a_stream(stack: Stack) -> None:
    """A paraphrase gets the stored answer in pieces, with offsets and usage, not one blob."""
    first = await stack.client.complete(QUESTION, max_tokens=600)
    await until_cached(stack.client, QUESTION, max_tokens=600)
    async with stack.client.generate(PARAPHRASE, max_tokens=600) as stream:
        events = [event async for event in stream]
    assert Source(events[0].started.source) is Source.SEMANTIC
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert len(deltas) > 1
    assert [token for delta in deltas for token in delta.token_ids] == first.token_ids
    ends = [delta.offset + len(delta.token_ids) for delta in deltas]
    assert [0, *ends] == [delta.offset for delta in deltas] + [600]
    assert events[-1].finished.usage.completion_tokens == 600
