"""Both ends of the link: whose answer is whose, and what becomes of one that does not come."""

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span

from cache_svc.link import LinkServer, open_link
from observability.link import frame
from observability.settings import ServerSettings, TelemetrySettings, TlsSettings
from observability.telemetry import Telemetry
from observability.tracing import SAMPLED
from router.cache_link import CacheLink
from sidecache.errors import (
    BrokenInvariant,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    SetupError,
    Unavailable,
)
from sidecache.v1 import cache_pb2
from tests.fixtures.cache import open_cache_link

SERVICE = "sidecache.v1.CacheService"
LONG_S = 30.0


class Answers:
    """Answers a lookup with the namespace it names, once it may; some names do otherwise."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked: list[str] = []
        self.at_once: list[str] = []
        self.left_s: list[float | None] = []
        self.cancelled: list[str] = []
        self.stored = 0

    def look_up_at_once(self, request: cache_pb2.LookupRequest) -> cache_pb2.LookupResponse | None:
        name = request.key.namespace
        if not name.startswith("at once"):
            return None
        self.at_once.append(name)
        return self._answer(name.removeprefix("at once").strip() or name)

    async def look_up(
        self, request: cache_pb2.LookupRequest, left_s: float | None
    ) -> cache_pb2.LookupResponse:
        name = request.key.namespace
        self.asked.append(name)
        self.left_s.append(left_s)
        try:
            if name not in ("odd", "bug", "at once"):
                await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return self._answer(name)

    @staticmethod
    def _answer(name: str) -> cache_pb2.LookupResponse:
        if name == "odd":
            raise InvalidRequest("is odd", field="key.namespace")
        if name == "bug":
            raise ZeroDivisionError("with the prompt in its text")
        response = cache_pb2.LookupResponse()
        response.hit.tier = cache_pb2.TIER_EXACT
        response.hit.entry_id = name if name != "huge" else "x" * 2000
        response.hit.answer.finished.add()
        return response

    async def store(self, request: cache_pb2.StoreRequest) -> cache_pb2.StoreResponse:
        self.stored += len(request.entries)
        return cache_pb2.StoreResponse(results=[cache_pb2.StoreResult()] * len(request.entries))


def asks(name: str) -> cache_pb2.LookupRequest:
    return cache_pb2.LookupRequest(key=cache_pb2.CacheKey(namespace=name))


@asynccontextmanager
async def served(
    folder: Path, answers: Answers, **settings: object
) -> AsyncIterator[tuple[str, LinkServer]]:
    """The sidecar's end; yields its address, and itself."""
    chosen = ServerSettings.model_validate({"listen": f"unix:{folder}/c.sock", **settings})
    telemetry = Telemetry.start("sidecache-cache", TelemetrySettings())
    async with open_link(answers, telemetry, chosen, SERVICE) as server:
        assert server is not None
        yield chosen.listen, server
    await telemetry.aclose()


@asynccontextmanager
async def linked(address: str) -> AsyncIterator[CacheLink]:
    telemetry = Telemetry.start("sidecache-router", TelemetrySettings())
    async with open_cache_link(address, telemetry) as link:
        yield link
    await telemetry.aclose()


async def test_each_gets_his_own_answer_whatever_their_order(tmp_path: Path) -> None:
    """Those that can be answered overtake those that cannot yet."""
    answers = Answers()
    answers.may_answer.clear()
    async with served(tmp_path, answers) as (address, _), linked(address) as link:
        slow = [asyncio.create_task(link.look_up(asks(f"n{i}"), LONG_S)) for i in range(300)]
        while len(answers.asked) < 300:
            await asyncio.sleep(0)
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"
        assert not any(task.done() for task in slow)
        answers.may_answer.set()
        found = [response.hit.entry_id for response in await asyncio.gather(*slow)]
    assert found == [f"n{i}" for i in range(300)]


async def test_stores_go_the_same_way(tmp_path: Path) -> None:
    """And are told of each entry."""
    async with served(tmp_path, Answers()) as (address, _), linked(address) as link:
        request = cache_pb2.StoreRequest(entries=[cache_pb2.StoreEntry()] * 3)
        assert len((await link.store(request, LONG_S)).results) == 3


async def test_what_waits_for_nothing_is_answered_where_it_was_read(tmp_path: Path) -> None:
    """Unless its trace is recorded: a span belongs to the context of a task."""
    answers = Answers()
    async with served(tmp_path, answers) as (address, _), linked(address) as link:
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"
        assert (answers.at_once, answers.asked) == (["at once"], [])
        recorded = SpanContext(1, 2, is_remote=True, trace_flags=SAMPLED)
        with use_span(NonRecordingSpan(recorded)):
            assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"
        assert (answers.at_once, answers.asked) == (["at once"], ["at once"])


@pytest.mark.parametrize("way", ["", "at once "])
async def test_errors_keep_their_class_and_a_bug_keeps_its_text(tmp_path: Path, way: str) -> None:
    """A refusal names its field; what a bug says may quote a prompt and stays there."""
    async with served(tmp_path, Answers()) as (address, _), linked(address) as link:
        with pytest.raises(InvalidRequest) as refused:
            await link.look_up(asks(f"{way}odd"), LONG_S)
        assert refused.value.field == "key.namespace"
        with pytest.raises(BrokenInvariant) as broken:
            await link.look_up(asks(f"{way}bug"), LONG_S)
        assert "prompt" not in str(broken.value)
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"


async def test_a_late_answer_is_dropped_and_its_work_ended(tmp_path: Path) -> None:
    """Caller and sidecar go by the same deadline; the next question gets its own answer."""
    answers = Answers()
    answers.may_answer.clear()
    async with served(tmp_path, answers) as (address, _), linked(address) as link:
        with pytest.raises(DeadlineExceeded):
            await link.look_up(asks("late"), 0.05)
        while not answers.cancelled:
            await asyncio.sleep(0)
        answers.may_answer.set()
        assert (await link.look_up(asks("next"), LONG_S)).hit.entry_id == "next"
    assert answers.left_s[0] is not None
    assert answers.left_s[0] <= 0.05


async def test_who_gives_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """A cancelled lookup harms no other."""
    answers = Answers()
    answers.may_answer.clear()
    async with served(tmp_path, answers) as (address, _), linked(address) as link:
        left, stays = (
            asyncio.create_task(link.look_up(asks(name), LONG_S)) for name in ("left", "stays")
        )
        while len(answers.asked) < 2:
            await asyncio.sleep(0)
        left.cancel()
        answers.may_answer.set()
        assert (await stays).hit.entry_id == "stays"
        assert left.cancelled()


async def test_a_lost_sidecar_is_told_at_once_and_found_again(tmp_path: Path) -> None:
    """Nobody waits for his deadline; the next sidecar on the same socket has a link again."""
    answers = Answers()
    answers.may_answer.clear()
    async with served(tmp_path, answers) as (address, server), linked(address) as link:
        waiting = asyncio.create_task(link.look_up(asks("waits"), LONG_S))
        while not answers.asked:
            await asyncio.sleep(0)
        for router in list(server.routers):
            router.cut()
        with pytest.raises(Unavailable):
            await waiting
        while not answers.cancelled:
            await asyncio.sleep(0)
        link.came_up.clear()
        if not link.is_up:
            with pytest.raises(Unavailable, match="down"):
                await link.look_up(asks("at once"), LONG_S)
        await asyncio.wait_for(link.came_up.wait(), LONG_S)
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"


async def test_what_was_asked_before_a_drain_is_answered(tmp_path: Path) -> None:
    """Then the sidecar hangs up, and takes no new router."""
    answers = Answers()
    answers.may_answer.clear()
    async with served(tmp_path, answers) as (address, server), linked(address) as link:
        waiting = asyncio.create_task(link.look_up(asks("asked"), LONG_S))
        while not answers.asked:
            await asyncio.sleep(0)
        server.close()
        answers.may_answer.set()
        assert (await waiting).hit.entry_id == "asked"
        while link.is_up:
            await asyncio.sleep(0)


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_sidecar_ends_when_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    """What answers stays until then; but not for a question that finds no end."""
    if not is_answered:
        monkeypatch.setattr("cache_svc.link._LAST_ANSWERS_S", 0.05)
    answers = Answers()
    answers.may_answer.clear()
    async with contextlib.AsyncExitStack() as sidecar:
        address, _ = await sidecar.enter_async_context(served(tmp_path, answers))
        async with linked(address) as link:
            waiting = asyncio.create_task(link.look_up(asks("asked"), LONG_S))
            while not answers.asked:
                await asyncio.sleep(0)
            ending = asyncio.create_task(sidecar.aclose())
            if is_answered:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not ending.done()
                answers.may_answer.set()
                assert (await waiting).hit.entry_id == "asked"
            else:
                with pytest.raises(Unavailable):
                    await waiting
            await ending
    assert bool(answers.cancelled) is not is_answered


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", frame(b"\xff\xff\xff")],
    ids=["another protocol", "no message"],
)
async def test_a_stranger_is_cut_off_alone(tmp_path: Path, sent: bytes) -> None:
    """Whatever it sends, others are answered."""
    async with served(tmp_path, Answers()) as (address, _), linked(address) as link:
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/c.sock.link")
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), LONG_S) == b""
        writer.close()
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"


async def test_too_many_questions_wait_in_the_socket(tmp_path: Path) -> None:
    """No router makes the sidecar hold more than so many; all are answered in the end."""
    answers = Answers()
    answers.may_answer.clear()
    bounded = served(tmp_path, answers, max_streams_per_connection=8)
    async with bounded as (address, server), linked(address) as link:
        first = [asyncio.create_task(link.look_up(asks(f"a{i}"), LONG_S)) for i in range(20)]
        while len(answers.asked) < 8:
            await asyncio.sleep(0)
        (router,) = server.routers
        second = [asyncio.create_task(link.look_up(asks(f"b{i}"), LONG_S)) for i in range(50)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert router.is_paused
        assert len(answers.asked) == 8
        answers.may_answer.set()
        found = await asyncio.gather(*first, *second)
    assert [response.hit.entry_id for response in found[20:]] == [f"b{i}" for i in range(50)]


async def test_a_router_that_reads_no_answers_is_asked_no_more(tmp_path: Path) -> None:
    """Answers given at once fill no memory either; who reads again gets every one of them."""
    answers, count = Answers(), 2000
    question = cache_pb2.LinkRequest(
        lookup=asks("at once huge"), traceparent=f"00-{1:032x}-{1:016x}-00"
    )
    async with served(tmp_path, answers) as (_, server):
        reader, writer = await asyncio.open_unix_connection(
            f"{tmp_path}/c.sock.link", limit=1 << 10
        )
        writer.write(frame(question.SerializeToString()) * count)
        while not any(router.is_paused for router in server.routers):
            await asyncio.sleep(0)
        assert 0 < len(answers.at_once) < count
        for _ in range(count):
            size = int.from_bytes(await reader.readexactly(4), "little")
            response = cache_pb2.LinkResponse.FromString(await reader.readexactly(size))
            assert len(response.lookup.hit.entry_id) == 2000
        writer.close()
    assert len(answers.at_once) == count


@pytest.mark.parametrize("way", ["", "at once "])
async def test_an_answer_that_is_too_long_ends_as_a_status(tmp_path: Path, way: str) -> None:
    """It would cut the link for everybody."""
    async with (
        served(tmp_path, Answers(), max_message_bytes=1024) as (address, _),
        linked(address) as link,
    ):
        with pytest.raises(Overloaded, match="may have 1024"):
            await link.look_up(asks(f"{way}huge"), LONG_S)
        assert (await link.look_up(asks("at once"), LONG_S)).hit.entry_id == "at once"


async def test_a_sidecar_that_does_not_read_fills_no_memory(tmp_path: Path) -> None:
    """What waits to be sent is bounded; beyond that the question is refused at once."""
    path = f"{tmp_path}/c.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(f"{path}.link")
        deaf.listen()
        async with linked(f"unix:{path}") as link:
            big = asks("x" * (1 << 20))
            waiting = [asyncio.create_task(link.look_up(big, LONG_S)) for _ in range(12)]
            done, pending = await asyncio.wait(
                waiting, return_when=asyncio.FIRST_EXCEPTION, timeout=LONG_S
            )
            assert done
            assert all(isinstance(task.exception(), Unavailable) for task in done)
            assert 3 <= len(pending) <= 6
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)


async def test_a_silent_connection_is_given_up_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that ran out of time on it may be the connection's fault, not the sidecar's."""
    monkeypatch.setattr("router.cache_link._SILENCE_S", 0.0)
    path = f"{tmp_path}/c.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(f"{path}.link")
        deaf.listen()
        async with linked(f"unix:{path}") as link:
            with pytest.raises(DeadlineExceeded):
                await link.look_up(asks("x"), 0.01)
            link.came_up.clear()
            await asyncio.wait_for(link.came_up.wait(), LONG_S)
            assert link.is_up


async def test_the_socket_is_private_and_goes_with_its_server(tmp_path: Path) -> None:
    """Only its own user can connect; a stale one is replaced, a live one never."""
    path = tmp_path / "c.sock.link"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    async with served(tmp_path, Answers()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SetupError, match="in use"):
            async with served(tmp_path, Answers()):
                pass
    assert not path.exists()


async def test_no_link_where_certificates_are_asked_for_or_there_is_no_socket_file() -> None:
    """Who is to prove himself does so by call."""
    telemetry = Telemetry.start("sidecache-cache", TelemetrySettings())
    tls = TlsSettings(cert_file=Path("c.pem"), key_file=Path("k.pem"))
    for settings in (
        ServerSettings(listen="127.0.0.1:0"),
        ServerSettings(listen="unix:/nowhere/c.sock", tls=tls),
    ):
        async with open_link(Answers(), telemetry, settings, SERVICE) as server:
            assert server is None
    await telemetry.aclose()
