"""One generation for one question, and streams that outlive a lost connection."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_token
from sidecache.client import CacheControl, SidecacheClient, Source
from sidecache.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    StreamInterrupted,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1.inference_pb2_grpc import InferenceServiceStub
from tests.fixtures.stack import KEYS, Stack, Worker, scripted_stack

PACED: dict[str, Any] = {"scripted": {"tokens_per_s": 200.0}}


async def eventually(is_so: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.001)


def busy(worker: Worker) -> int:
    return worker.engine.load_figures().running_sequences


async def reference(client: SidecacheClient, prompt: str, count: int) -> list[int]:
    seed = prompt_seed(await client.tokenize(prompt))
    return [scripted_token(seed, position) for position in range(count)]


def stub(channel: grpc.aio.Channel) -> Any:
    return InferenceServiceStub(channel)


def credentials(tenant: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {KEYS[tenant]}"),)


def request(**more: Any) -> pb.GenerateRequest:
    message = pb.ChatMessage(role="user", content="hello")
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), **more)


async def test_a_crowd_with_one_question_costs_one_generation(tmp_path: Path) -> None:
    """Whoever asks meanwhile gets the same tokens, his own request id, and is told."""
    # So slow that on a busy machine, too, the last of them comes before the answer's end.
    slow = {"scripted": {"tokens_per_s": 30.0}}
    async with scripted_stack(tmp_path, workers=[slow]) as stack:
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=60))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        crowd = [
            asyncio.create_task(stack.client.complete("hello", max_tokens=60)) for _ in range(50)
        ]
        most = 0
        while not first.done():
            most = max(most, busy(stack.workers[0]))
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(first, *crowd)
        assert most == 1
        ids = await reference(stack.client, "hello", 60)
        assert all(answer.token_ids == ids for answer in answers)
        assert all(answer.text == answers[0].text for answer in answers)
        assert [answer.source for answer in answers] == [Source.ENGINE, *[Source.COALESCED] * 50]
        assert len({answer.request_id for answer in answers}) == 51


async def test_without_single_flight_everybody_gets_his_own(tmp_path: Path) -> None:
    """The operator can turn it off."""
    settings = {"flights": {"single_flight": False}}
    async with scripted_stack(tmp_path, workers=[PACED], router_=settings) as stack:
        asking = [
            asyncio.create_task(stack.client.complete("hello", max_tokens=40)) for _ in range(3)
        ]
        await eventually(lambda: busy(stack.workers[0]) == 3)
        assert {answer.source for answer in await asyncio.gather(*asking)} == {Source.ENGINE}


@pytest.mark.parametrize(
    "leader",
    [CacheControl(no_store=True), CacheControl(mode=pb.CACHE_MODE_BYPASS)],
    ids=["no_store", "bypass"],
)
async def test_what_may_not_be_stored_is_not_shared(
    tmp_path: Path, leader: pb.CacheControl
) -> None:
    """A private answer is read by its own caller only."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=40, cache=leader))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        assert (await stack.client.complete("hello", max_tokens=40)).source is Source.ENGINE
        await first


async def test_who_wants_a_fresh_answer_gets_his_own(tmp_path: Path) -> None:
    """NO_CACHE takes neither a stored answer nor one that others began."""
    fresh = CacheControl(mode=pb.CACHE_MODE_NO_CACHE)
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=40))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        answer = await stack.client.complete("hello", max_tokens=40, cache=fresh)
        assert answer.source is Source.ENGINE
        await first


async def test_tenants_never_read_one_anothers_streams(tmp_path: Path) -> None:
    """The same words from another tenant are another question."""
    async with (
        scripted_stack(tmp_path, workers=[PACED]) as stack,
        stack.connect("umbrella") as other,
    ):
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=40))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        assert (await other.complete("hello", max_tokens=40)).source is Source.ENGINE
        await first


async def test_a_leader_who_leaves_hands_over(tmp_path: Path) -> None:
    """The stream goes on for those who follow; the last one to leave frees the slot."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        leader = asyncio.create_task(stack.client.complete("hello", max_tokens=100))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        async with stack.client.generate("hello", max_tokens=100) as follower:
            events = aiter(follower)
            await anext(events)
            leader.cancel()
            ids = [i async for event in events for i in event.delta.token_ids]
        ids_wanted = await reference(stack.client, "hello", 100)
        assert ids == ids_wanted[-len(ids) :]
        assert len(ids) >= 90


async def test_a_leaders_deadline_is_his_alone(tmp_path: Path) -> None:
    """Who joined has his own; the engine is not told the first one's."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        leader = asyncio.create_task(stack.client.complete("hello", max_tokens=200, timeout_s=0.4))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        answer = await stack.client.complete("hello", max_tokens=200)
        assert answer.token_ids == await reference(stack.client, "hello", 200)
        with pytest.raises(DeadlineExceeded):
            await leader


async def test_a_deadline_frees_the_slot_of_who_is_alone(tmp_path: Path) -> None:
    """Though the engine has more time than he."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        with pytest.raises(DeadlineExceeded):
            await stack.client.complete("hello", max_tokens=1000, timeout_s=0.2)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)


async def test_the_last_reader_to_leave_frees_the_slot(tmp_path: Path) -> None:
    """Nobody generates for nobody."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        asking = [asyncio.create_task(stack.client.complete("x", max_tokens=999)) for _ in range(3)]
        await eventually(lambda: busy(stack.workers[0]) == 1)
        await asyncio.sleep(0.05)
        for task in asking:
            assert busy(stack.workers[0]) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)


async def test_a_failure_is_told_to_everybody(tmp_path: Path) -> None:
    """What ends the generation ends it for all who read it, each with the same status."""
    fleet: list[dict[str, Any]] = [{"scripted": {"tokens_per_s": 100.0, "die_after_tokens": 30}}]
    settings = {"limits": {"migration_wait_s": 0.05}}
    async with scripted_stack(tmp_path, workers=fleet, router_=settings) as stack:
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=60))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        crowd = [asyncio.create_task(stack.client.complete("hello", max_tokens=60)) for _ in "abc"]
        ends = await asyncio.gather(first, *crowd, return_exceptions=True)
        assert [type(end) for end in ends] == [StreamInterrupted] * 4


async def test_a_shared_stream_survives_its_workers_death(tmp_path: Path) -> None:
    """Followers move with the leader, token for token."""
    fleet: list[dict[str, Any]] = [
        {"scripted": {"tokens_per_s": 200.0, "die_after_tokens": 30}},
        PACED,
    ]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        first = asyncio.create_task(stack.client.complete("hello", max_tokens=60))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        crowd = [asyncio.create_task(stack.client.complete("hello", max_tokens=60)) for _ in "abc"]
        ids = await reference(stack.client, "hello", 60)
        assert all(answer.token_ids == ids for answer in await asyncio.gather(first, *crowd))


async def test_a_reader_that_stalls_holds_up_nobody(tmp_path: Path) -> None:
    """Others get the whole stream while one takes nothing; he is cut off in the end."""
    fast: dict[str, Any] = {"scripted": {"tokens_per_s": 20000.0, "context_length": 100_000}}
    settings = {"limits": {"reader_stall_s": 1.0}}
    async with scripted_stack(tmp_path, workers=[fast], router_=settings) as stack:
        leader = asyncio.create_task(stack.client.complete("x", max_tokens=20_000))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        async with grpc.aio.insecure_channel(
            stack.router.address,
            options=[("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)],
        ) as channel:
            asked = pb.GenerateRequest(max_tokens=20_000)
            asked.chat.messages.add(role="user", content="x")
            call = stub(channel).Generate(asked, metadata=credentials("acme"))
            first = await call.read()
            assert first.started.source == pb.SOURCE_COALESCED
            answer = await leader
            assert len(answer.token_ids) == 20_000
            call.cancel()


class Lost:
    """A client whose connection breaks in the middle, and who comes back."""

    def __init__(self, stack: Stack, tenant: str = "acme") -> None:
        self.stack = stack
        self.metadata = credentials(tenant)
        self.request_id = ""
        self.ids: list[int] = []

    async def begin(self, asked: pb.GenerateRequest, at_least: int) -> None:
        """Read so many tokens, then break off."""
        async with grpc.aio.insecure_channel(self.stack.router.address) as channel:
            call = stub(channel).Generate(asked, metadata=self.metadata)
            while len(self.ids) < at_least:
                message = await call.read()
                self.request_id = message.started.request_id or self.request_id
                self.ids += message.delta.token_ids

    async def come_back(self, offset: int | None = None) -> list[int]:
        """Attach and read to the end; the tokens from there on."""
        async with grpc.aio.insecure_channel(self.stack.router.address) as channel:
            asked = pb.AttachRequest(
                request_id=self.request_id, offset=len(self.ids) if offset is None else offset
            )
            try:
                call = stub(channel).Attach(asked, metadata=self.metadata)
                events = [response.event async for response in call]
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
        assert events[0].started.request_id == self.request_id
        assert events[-1].HasField("finished")
        return [i for event in events for i in event.delta.token_ids]


def attachable(window_s: int = 30, **more: Any) -> pb.GenerateRequest:
    asked = request(max_tokens=100, **more)
    asked.attach_window.FromSeconds(window_s)
    return asked


@pytest.mark.parametrize("mode", [pb.CACHE_MODE_DEFAULT, pb.CACHE_MODE_BYPASS])
async def test_a_lost_client_comes_back_to_the_very_next_token(
    tmp_path: Path, mode: "pb.CacheMode.ValueType"
) -> None:
    """The generation goes on meanwhile, and nothing is lost or repeated."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        lost = Lost(stack)
        await lost.begin(attachable(cache=pb.CacheControl(mode=mode)), at_least=10)
        rest = await lost.come_back()
        assert lost.ids + rest == await reference(stack.client, "hello", 100)
        # Ended, and still there: the connection may break more than once.
        assert lost.ids + await lost.come_back() == lost.ids + rest
        assert await lost.come_back(0) == lost.ids + rest


async def test_who_does_not_come_back_in_time_is_forgotten(tmp_path: Path) -> None:
    """The slot is free when the window is over, and the stream is gone."""
    settings = {"limits": {"max_attach_window_s": 0.2}}
    async with scripted_stack(tmp_path, workers=[PACED], router_=settings) as stack:
        lost = Lost(stack)
        await lost.begin(attachable(), at_least=10)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=2)
        with pytest.raises(NotFound, match="no stream of yours"):
            await lost.come_back()


async def test_without_a_window_a_lost_client_has_given_up(tmp_path: Path) -> None:
    """The default frees the slot at once."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        lost = Lost(stack)
        await lost.begin(request(max_tokens=1000), at_least=10)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)
        with pytest.raises(NotFound):
            await lost.come_back()


async def test_a_foreign_stream_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Another tenant's request id and an unknown one get the same answer."""
    async with scripted_stack(tmp_path, workers=[PACED]) as stack:
        lost = Lost(stack)
        await lost.begin(attachable(), at_least=10)
        thief = Lost(stack, "umbrella")
        texts = []
        for thief.request_id in (lost.request_id, "no-such-id"):
            with pytest.raises(NotFound) as refused:
                await thief.come_back(0)
            texts.append(refused.value.text)
        assert texts[0] == texts[1]
        assert lost.ids + await lost.come_back() == await reference(stack.client, "hello", 100)


async def test_a_wrong_offset_is_refused(tmp_path: Path) -> None:
    """Beyond what was generated, or in the middle of a message: the error says which."""
    burst: dict[str, Any] = {"scripted": {"tokens_per_s": 200.0, "burst": 8}}
    async with scripted_stack(tmp_path, workers=[burst]) as stack:
        lost = Lost(stack)
        await lost.begin(attachable(), at_least=16)
        with pytest.raises(InvalidRequest, match=r"offset: 10000; the stream has \d+ tokens"):
            await lost.come_back(10_000)
        with pytest.raises(InvalidRequest, match=r"no message ended there, only at \d+"):
            await lost.come_back(3)
        assert lost.ids + await lost.come_back() == await reference(stack.client, "hello", 100)


@pytest.mark.parametrize(
    ("more", "why"),
    [({"n": 2}, "may be set for one"), ({"attach_window": -1}, "negative")],
)
async def test_a_window_that_cannot_be_is_refused(
    tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    """Several choices cannot be come back to, nor can time run backwards."""
    asked = attachable()
    if "n" in more:
        asked.n = more["n"]
    else:
        asked.attach_window.FromSeconds(-1)
    async with scripted_stack(tmp_path) as stack:
        with pytest.raises(InvalidRequest, match=why):
            async with grpc.aio.insecure_channel(stack.router.address) as channel:
                try:
                    await stub(channel).Generate(asked, metadata=credentials("acme")).read()
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error) from error


async def test_kept_streams_are_bounded(tmp_path: Path) -> None:
    """Over the bound the oldest is given up, and its slot is free."""
    settings = {"flights": {"max_kept": 2}}
    async with scripted_stack(tmp_path, workers=[PACED], router_=settings) as stack:
        clients = [Lost(stack) for _ in range(3)]
        for number, client in enumerate(clients):
            asked = attachable()
            asked.chat.messages[0].content = f"hello {number}"
            asked.max_tokens = 1000
            await client.begin(asked, at_least=2)
        await eventually(lambda: busy(stack.workers[0]) == 2, within_s=2)
        with pytest.raises(NotFound):
            await clients[0].come_back()
