"""Workers die at random places of a text whose characters take several tokens each."""

import random
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engines.script import prompt_seed, scripted_byte
from tests.fixtures.stack import scripted_stack
from tests.integration.test_router_migration import events_of, ids_of, moves_of, text_of

LENGTH = 120


def byte_worker(**faults: Any) -> dict[str, Any]:
    return {"scripted": {"vocabulary": "bytes", "tokens_per_s": 4000.0} | faults}


@pytest.mark.parametrize("seed", range(8))
async def test_wherever_workers_die_the_text_is_whole(tmp_path: Path, seed: int) -> None:
    """Tokens, text and reason are those of an unbroken run, with and without a stop string."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    deaths = sorted(chance.sample(range(1, LENGTH), 2))
    prompt = f"prompt {seed}"
    # As the engine renders a chat of one turn: a token for each byte.
    rendered = f"user: {prompt}\nassistant:".encode()
    ids = [scripted_byte(prompt_seed(list(rendered)), at) for at in range(LENGTH)]
    whole = bytes(ids).decode()
    at = chance.randrange(20, len(whole) - 4)
    stop = whole[at : at + chance.randint(1, 4)]
    stops = [[], [stop]][seed % 2]
    fleet = [byte_worker(die_after_tokens=after) for after in deaths] + [byte_worker()]
    async with scripted_stack(tmp_path, workers=fleet, with_cache=False) as stack:
        events = await events_of(stack.client, prompt, max_tokens=LENGTH, stop=stops)
    expected = whole[: whole.index(stop)] if stops else whole
    assert text_of(events) == expected
    assert ids_of(events) == ids[: len(ids_of(events))]
    if not stops:
        assert ids_of(events) == ids
        assert len(moves_of(events)) == 2
