"""A stream whose worker is lost goes on at another one, token for token, or says why not."""

import time
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_text, scripted_token
from sidecache.client import CacheControl, SidecacheClient
from sidecache.errors import NotCached, StreamInterrupted
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
PACE = {"tokens_per_s": 2000.0}
BEST_EFFORT = pb.ON_WORKER_LOSS_BEST_EFFORT


def dying(after: int) -> dict[str, Any]:
    return {"scripted": PACE | {"die_after_tokens": after}}


async def events_of(client: SidecacheClient, prompt: str, **more: Any) -> list[pb.GenerateResponse]:
    async with client.generate(prompt, cache=BYPASS, **more) as stream:
        return [event async for event in stream]


def ids_of(events: list[pb.GenerateResponse]) -> list[int]:
    return [token_id for event in events for token_id in event.delta.token_ids]


def text_of(events: list[pb.GenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


def moves_of(events: list[pb.GenerateResponse]) -> list[tuple[str, str, int]]:
    moves = [event.migrated for event in events if event.HasField("migrated")]
    return [(move.from_worker, move.to_worker, move.offset) for move in moves]


async def reference(stack: Stack, prompt: str, count: int) -> list[int]:
    seed = prompt_seed(await stack.client.tokenize(prompt))
    return [scripted_token(seed, position) for position in range(count)]


@pytest.mark.parametrize("after", [1, 2, 7, 15, 29, 30])
async def test_the_next_worker_goes_on_from_the_very_next_token(tmp_path: Path, after: int) -> None:
    """Wherever a worker dies, the client's tokens, text and usage are those of an unbroken run."""
    async with scripted_stack(tmp_path, workers=[dying(after), {}]) as stack:
        events = await events_of(stack.client, "hello", max_tokens=30)
        ids = await reference(stack, "hello", 30)
        assert ids_of(events) == ids
        assert text_of(events) == "".join(map(scripted_text, ids))
        for start, end, offset in moves_of(events):
            assert (start, end) == ("w1", "w2")
            assert 0 < offset <= after
        assert len(moves_of(events)) == (1 if after < 30 else 0)
        assert events[-1].finished.usage.completion_tokens == 30
        assert events[-1].finished.reason == pb.FINISH_REASON_LENGTH


async def test_a_stream_may_move_more_than_once(tmp_path: Path) -> None:
    """Each move goes on from the last token, whoever sent it."""
    # Far enough apart that the prompt is not taken for the reason.
    fleet = [dying(5), dying(31), dying(62), {}]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        events = await events_of(stack.client, "hello", max_tokens=80)
        assert ids_of(events) == await reference(stack, "hello", 80)
        assert [move[1] for move in moves_of(events)] == ["w2", "w3", "w4"]


async def test_moves_have_a_bound(tmp_path: Path) -> None:
    """A stream that loses one worker after the other ends, and says so."""
    settings = {"limits": {"max_migrations": 1}}
    async with scripted_stack(tmp_path, workers=[dying(5), dying(9), {}], router_=settings) as st:
        with pytest.raises(StreamInterrupted, match="it may move 1 times"):
            await events_of(st.client, "hello", max_tokens=40)


async def test_a_stop_string_across_the_cut_still_ends_the_answer(tmp_path: Path) -> None:
    """What was held back as the beginning of a stop string travels along."""
    async with scripted_stack(tmp_path, workers=[{}]) as calm:
        ids = await reference(calm, "hello", 30)
    for cut in range(8, 14):
        # The stop string begins in the token before the cut and ends in the one after.
        stop = (scripted_text(ids[10]) + scripted_text(ids[11]))[2:-1]
        folder = tmp_path / str(cut)
        folder.mkdir()
        async with scripted_stack(folder, workers=[dying(cut), {}]) as stack:
            events = await events_of(stack.client, "hello", max_tokens=30, stop=[stop])
        whole = "".join(map(scripted_text, ids))
        assert text_of(events) == whole[: whole.index(stop)]
        assert ids_of(events) == ids[:12]
        assert events[-1].finished.reason == pb.FINISH_REASON_STOP


async def test_log_probabilities_go_on(tmp_path: Path) -> None:
    """Every token keeps its own log-probability across a move."""
    async with scripted_stack(tmp_path, workers=[dying(7), {}]) as stack:
        events = await events_of(stack.client, "hello", max_tokens=20, logprobs=0)
        assert sum(len(event.delta.logprobs) for event in events) == 20


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"temperature": 0.7, "seed": 1}, "it is sampled"),
        ({"n": 2}, "it has several choices"),
        ({"presence_penalty": 0.5}, "its tokens are penalized"),
        ({"frequency_penalty": 0.5}, "its tokens are penalized"),
        ({"repetition_penalty": 1.1}, "its tokens are penalized"),
    ],
)
async def test_what_cannot_be_exact_ends_and_says_why(
    tmp_path: Path, option: dict[str, Any], why: str
) -> None:
    """Tokens that were sent stand; the rest is an ABORTED, never a second answer."""
    async with scripted_stack(tmp_path, workers=[dying(5), {}]) as stack:
        with pytest.raises(StreamInterrupted, match=f"continued exactly: {why}"):
            await events_of(stack.client, "hello", max_tokens=30, **option)


async def test_a_caller_may_take_less_than_exact(tmp_path: Path) -> None:
    """Best effort goes on, says that it may differ, and is never stored."""
    async with scripted_stack(tmp_path, workers=[dying(5), {}]) as stack:
        options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.7, "seed": 3}
        options["on_worker_loss"] = BEST_EFFORT
        async with stack.client.generate("hello", **options) as stream:
            events = [event async for event in stream]
        assert len(ids_of(events)) == 30
        assert [event.migrated.best_effort for event in events if event.HasField("migrated")] == [
            True
        ]
        with pytest.raises(NotCached):
            only = CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
            await stack.client.complete("hello", cache=only, **options)


async def test_an_exact_move_is_stored_as_any_answer(tmp_path: Path) -> None:
    """What is whole and right may be served again."""
    async with scripted_stack(tmp_path, workers=[dying(5), {}]) as stack:
        first = await stack.client.complete("hello", max_tokens=30)
        for _ in range(100):
            again = await stack.client.complete("hello", max_tokens=30)
            if not again.worker:
                break
        assert not again.worker
        assert again.token_ids == first.token_ids == await reference(stack, "hello", 30)


async def test_a_hung_worker_is_left_in_mid_stream(tmp_path: Path) -> None:
    """A worker that stops between tokens is given up within the time between tokens."""
    fleet = [{"scripted": PACE | {"hang_after_tokens": 6}}, {}]
    settings = {"limits": {"token_silence_s": 0.3}}
    async with scripted_stack(tmp_path, workers=fleet, router_=settings) as stack:
        started = time.perf_counter()
        events = await events_of(stack.client, "hello", max_tokens=30)
        assert ids_of(events) == await reference(stack, "hello", 30)
        assert [move[2] for move in moves_of(events)] == [6]
        assert 0.3 <= time.perf_counter() - started < 1.5


async def test_with_nobody_left_a_stream_waits_a_little_and_ends(tmp_path: Path) -> None:
    """The bound of the wait is the operator's, and the end says what it waited for."""
    settings = {"limits": {"migration_wait_s": 0.2}}
    async with scripted_stack(tmp_path, workers=[dying(5)], router_=settings) as stack:
        with pytest.raises(StreamInterrupted, match=r"no other was ready within 0.2 s"):
            await events_of(stack.client, "hello", max_tokens=30)


async def test_a_worker_found_hanging_is_asked_again(tmp_path: Path) -> None:
    """Suspicion is not for ever: a worker whose health speaks for it is used again."""
    fleet = [{"scripted": PACE | {"hang_after_tokens": 6}}]
    limits = {"token_silence_s": 0.1, "migration_wait_s": 3.0, "max_migrations": 1}
    settings = {"limits": limits | {"worker_silence_s": 1.0}}
    async with scripted_stack(tmp_path, workers=fleet, router_=settings) as stack:
        # The same worker is ready again, and hangs again: its process lives.
        with pytest.raises(StreamInterrupted, match="it may move 1 times"):
            await events_of(stack.client, "hello", max_tokens=30)
