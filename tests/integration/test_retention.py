"""Pinning a prefix: what a key may ask for, for how long, and how it reaches the engine."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from inference_svc.engine import GenerationRequest, Retention
from router.retention import MAX_RETENTION
from sidecache import keys_file
from sidecache.client import ChatMessage, PrefixRetention
from sidecache.errors import Forbidden, InvalidRequest
from tests.fixtures.stack import KEYS, Stack, scripted_stack
from tests.integration.test_cache_operator import command
from tests.integration.test_routing import heard_by

SYSTEM = "You are a careful clerk of the registry. " * 8


async def pinned(stack: Stack, retention: PrefixRetention, tenant: str = "acme") -> Retention:
    """What the engine is asked to keep of a chat with a system prompt."""
    with heard_by(stack.workers[0]) as requests:
        messages = [
            ChatMessage(role="system", content=SYSTEM),
            ChatMessage(role="user", content="What is due?"),
        ]
        async with stack.connect(tenant) as client:
            await client.complete(messages, max_tokens=1, retention=retention)
    return kept(requests)


def kept(requests: list[GenerationRequest]) -> Retention:
    assert requests[0].retention is not None
    return requests[0].retention


async def test_a_wish_reaches_the_engine_within_its_bounds(tmp_path: Path) -> None:
    """Its leading messages in tokens, its priority, and a time that never is without end."""
    settings = {"limits": {"max_retention_s": 100}}
    async with scripted_stack(tmp_path, with_cache=False, router_=settings) as stack:
        short = await pinned(
            stack, PrefixRetention(priority=90, leading_messages=1, duration=Duration(seconds=7))
        )
        assert (short.priority, short.duration_s) == (90, 7)
        assert len(SYSTEM) <= short.prompt_tokens < len(SYSTEM) + len("What is due?")
        endless = await pinned(stack, PrefixRetention(priority=1))
        long = await pinned(
            stack, PrefixRetention(priority=1, duration=Duration(seconds=7 * 86400))
        )
        assert endless.duration_s == long.duration_s == 100
        assert endless.prompt_tokens > short.prompt_tokens


async def test_a_key_says_who_may_pin(tmp_path: Path) -> None:
    """Another tenant's key and a higher priority are refused, before any worker hears of it."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        with heard_by(stack.workers[0]) as requests:
            for tenant, priority, error in (
                ("umbrella", 1, Forbidden),
                ("operator", 1, Forbidden),
                ("acme", 91, Forbidden),
                ("acme", MAX_RETENTION + 1, InvalidRequest),
                ("acme", 0, InvalidRequest),
            ):
                with pytest.raises(error, match="retention"):
                    await pinned(stack, PrefixRetention(priority=priority), tenant)
        assert requests == []


async def test_a_conversation_in_the_terminal_pins_its_system_prompt(tmp_path: Path) -> None:
    """`sidecache chat --pin`, every turn of it."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        with heard_by(stack.workers[0]) as requests:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sidecache", "chat", "-a", stack.router.address),
                *("--system", SYSTEM, "--pin", "80", "--keep", "9.5", "--max-tokens", "2"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env=os.environ | {"SIDECACHE_API_KEY": KEYS["acme"]},
            )
            async with asyncio.timeout(30):
                await process.communicate(b"What is due?\nAnd then?\n")
        assert process.returncode == 0
        for request in requests:
            assert kept([request]).priority == 80
            assert kept([request]).duration_s == 9.5
            assert kept([request]).prompt_tokens < len(SYSTEM) + len("What is due?")
        assert len(requests) == 2


async def test_an_operator_warms_for_longer(tmp_path: Path) -> None:
    """WarmPrefix needs an admin's key and takes the time that the admin says."""
    text = tmp_path / "system.txt"
    text.write_text(SYSTEM)
    settings = {"limits": {"max_retention_s": 100}}
    async with scripted_stack(tmp_path, with_cache=False, router_=settings) as stack:
        with heard_by(stack.workers[0]) as requests:
            arguments = ("--system", "--tenant", "acme", "--priority", "90", "--keep", "7200")
            code, _, complaint = await command(stack, "warm", str(text), *arguments)
            assert code == 0, complaint
        assert kept(requests).duration_s == 7200


def test_the_bounds_of_keys_are_those_of_requests() -> None:
    """The client's package says them again, since it imports nothing of the router's."""
    assert keys_file.MAX_RETENTION == MAX_RETENTION
