"""Whoever asks in other words what is being answered may wait for that answer."""

import asyncio
from pathlib import Path
from typing import Any

from sidecache.client import CacheControl, SidecacheClient, Source
from tests.fixtures.cached import semantic_stack
from tests.fixtures.stack import Stack
from tests.integration.test_router_flights import PACED, busy, eventually, reference

TOKENS = 100
QUESTION = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"
ANOTHER = "How could I reset my password?"
# Generations that say nothing, so that the number of them can be looked at in peace.
HELD: dict[str, Any] = {"scripted": {"ttft_s": 60.0}}
WAITS: dict[str, Any] = {"flights": {"paraphrase_wait_s": 20.0}}


def asked(client: SidecacheClient, prompt: str, **more: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(client.complete(prompt, max_tokens=TOKENS, **more))


async def is_busy_with(stack: Stack, generations: int) -> None:
    """Return when so many are under way; a lookup takes its time on a busy machine."""
    await eventually(lambda: busy(stack.workers[0]) == generations, within_s=20)


async def let_go(stack: Stack, *tasks: "asyncio.Task[Any]") -> None:
    """Nobody needs these answers."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await is_busy_with(stack, 0)


async def leading(stack: Stack, **more: Any) -> "asyncio.Task[Any]":
    """Somebody's question under way."""
    task = asked(stack.client, QUESTION, **more)
    await is_busy_with(stack, 1)
    return task


async def test_a_paraphrase_gets_the_answer_that_is_under_way(
    tmp_path: Path, minilm_path: Path
) -> None:
    """As a hit by meaning, with its entry; nothing is generated for it."""
    async with semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[PACED]) as stack:
        leader = await leading(stack)
        followers = [asked(stack.client, PARAPHRASE) for _ in range(5)]
        most = 0
        while not leader.done():
            most = max(most, busy(stack.workers[0]))
            await asyncio.sleep(0.005)
        ids = await reference(stack.client, QUESTION, TOKENS)
        for answer in await asyncio.gather(*followers):
            assert answer.source is Source.SEMANTIC
            assert answer.token_ids == ids
            assert answer.cache_entry_id
        assert most == 1


async def test_unless_it_is_set_nobody_waits(tmp_path: Path, minilm_path: Path) -> None:
    """Off by default: each question is its own."""
    async with semantic_stack(tmp_path, minilm_path, workers=[HELD]) as stack:
        leader = await leading(stack)
        other = asked(stack.client, PARAPHRASE)
        await is_busy_with(stack, 2)
        await let_go(stack, leader, other)


async def test_a_look_alike_does_not_wait(tmp_path: Path, minilm_path: Path) -> None:
    """The verifier has the last word here too."""
    pairs = [
        ("Cancel my subscription", "Do not cancel my subscription"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        (QUESTION, "What is the weather like in Paris today?"),
    ]
    async with semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[HELD]) as stack:
        for question, look_alike in pairs:
            leader = asked(stack.client, question)
            await is_busy_with(stack, 1)
            other = asked(stack.client, look_alike)
            await is_busy_with(stack, 2)
            await let_go(stack, leader, other)


async def test_who_would_not_be_served_does_not_wait(tmp_path: Path, minilm_path: Path) -> None:
    """The rules of a hit by meaning hold for the wait; another tenant hears of nobody."""
    others: list[dict[str, Any]] = [
        {"temperature": 0.5, "seed": 1},
        {"cache": CacheControl(min_similarity=0.9999)},
        {"cache": CacheControl(namespace="another")},
        {"cache": CacheControl(no_store=True)},
    ]
    async with (
        semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[HELD]) as stack,
        stack.connect("umbrella") as other,
    ):
        asking = [await leading(stack), asked(other, PARAPHRASE)]
        prompts = (PARAPHRASE, PARAPHRASE, PARAPHRASE, ANOTHER)
        for prompt, more in zip(prompts, others, strict=True):
            await is_busy_with(stack, len(asking))
            asking.append(asked(stack.client, prompt, **more))
        await is_busy_with(stack, len(asking))
        await let_go(stack, *asking)


async def test_nobody_waits_for_what_will_not_be_stored(tmp_path: Path, minilm_path: Path) -> None:
    """A private answer is no answer for others."""
    private = CacheControl(no_store=True)
    async with semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[HELD]) as stack:
        leader = await leading(stack, cache=private)
        other = asked(stack.client, PARAPHRASE)
        await is_busy_with(stack, 2)
        await let_go(stack, leader, other)


async def test_a_leader_who_gives_up_is_waited_for_no_longer(
    tmp_path: Path, minilm_path: Path
) -> None:
    """One of those who waited generates, and the others wait for him."""
    async with semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[PACED]) as stack:
        leader = asyncio.create_task(stack.client.complete(QUESTION, max_tokens=300))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        prompts = [PARAPHRASE, ANOTHER]
        followers = [
            asyncio.create_task(stack.client.complete(prompt, max_tokens=300)) for prompt in prompts
        ]
        await asyncio.sleep(0.3)
        assert busy(stack.workers[0]) == 1
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        async with asyncio.timeout(15):
            answers = await asyncio.gather(*followers)
        assert sorted(answer.source for answer in answers) == [Source.ENGINE, Source.SEMANTIC]


async def test_a_slow_leader_is_not_waited_for_longer_than_is_set(
    tmp_path: Path, minilm_path: Path
) -> None:
    """The wait is bounded, and the leader's own stream goes on."""
    settings = {"flights": {"paraphrase_wait_s": 0.2}}
    async with semantic_stack(tmp_path, minilm_path, router_=settings, workers=[HELD]) as stack:
        leader = await leading(stack)
        follower = asked(stack.client, PARAPHRASE)
        await is_busy_with(stack, 2)
        await let_go(stack, leader, follower)


async def test_a_lost_sidecar_ends_the_wait(tmp_path: Path, minilm_path: Path) -> None:
    """Nobody would say that the answer is there."""
    async with semantic_stack(tmp_path, minilm_path, router_=WAITS, workers=[HELD]) as stack:
        leader = await leading(stack)
        follower = asked(stack.client, PARAPHRASE)
        await asyncio.sleep(0.3)
        assert busy(stack.workers[0]) == 1
        assert stack.cache
        await stack.cache.drain(0)
        await is_busy_with(stack, 2)
        await let_go(stack, leader, follower)
