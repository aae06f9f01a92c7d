"""The remote engine: against llama.cpp's real server, and against one that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engine import Continuation, FinishReason, Guided, Sampling
from inference_svc.engines.remote import RemoteEngine
from inference_svc.remote_settings import RemoteSettings
from sidecache.errors import EngineFailed, InvalidRequest, Overloaded, SetupError, SidecacheError
from tests.contract.engines import MAX_SEQUENCES, Subject, collect
from tests.fixtures.faulty_server import (
    HEADERS,
    Behaviour,
    FaultyServer,
    at_once,
    drip,
    event,
    faulty_server,
    refuse,
    say,
)
from tests.fixtures.llama_server import LlamaServer, remote

DONE = b"data: [DONE]\n\n"
QUESTION = "Write a short poem about the sea."


@asynccontextmanager
async def faulty(
    path: Path, limits: Mapping[str, float] | None = None, **settings: Any
) -> AsyncIterator[tuple[FaultyServer, Subject]]:
    """A server that behaved while the engine loaded; ``limits`` hold only after that."""
    values: dict[str, Any] = {"probe_interval_s": 60}
    async with (
        faulty_server() as server,
        remote(server.base_url, path, None, **values | settings) as subject,
    ):
        assert isinstance(subject.engine, RemoteEngine)
        http = subject.engine._server
        assert http is not None
        http._settings = http._settings.model_copy(update=limits or {})
        yield server, subject


BROKEN: dict[str, tuple[Behaviour, str]] = {
    "resets": (say(HEADERS, event("The"), then="reset"), "remote server"),
    "breaks off": (say(HEADERS, event("The")), "broke the stream off"),
    "ends without a reason": (
        say(HEADERS, event("The"), DONE), "without a finish reason"),
    "sends no HTTP": (say(b"\x00\x01garbage\r\n\r\n"), "remote server"),
    "sends no JSON": (say(HEADERS, b"data: {what\n\n"), "no JSON object"),
    "sends other JSON": (say(HEADERS, b'data: {"choices": 7}\n\n'), "no completion"),
    "sends an endless line": (say(HEADERS, b"data: " + b"x" * 2**21), "a line beyond"),
    "fails in the middle": (
        say(HEADERS, event("The"), b'data: {"error": {"message": "CUDA"}}\n\n'), "gave up: CUDA"),
    "answers as another model": (
        say(HEADERS, event("The", model="other")), "as model 'other'"),
    "sends deep JSON": (say(HEADERS, b"data: " + b"[" * 100_000 + b"\n\n"), "no JSON object"),
    "sends a page": (
        say(HEADERS.replace(b"text/event-stream", b"text/html"), b"<html>"), "text/html"),
    "never ends": (say(HEADERS, *[event(" sea" * 50)] * 50, then="hang"), "does not stop at"),
    "says nothing for ever": (say(HEADERS, *[event("")] * 300, then="hang"), "does not stop at"),
    "is done before it began": (say(HEADERS, DONE), "without a finish reason"),
    "answers 500": (refuse(500), "answers 500: for a reason"),
    "answers 401": (refuse(401), "answers 401"),
    "has lost the model": (refuse(404), "answers 404"),
}  # fmt: skip


HANGS = {
    "before its headers": say(then="hang"),
    "after its headers": say(HEADERS, then="hang"),
    "between tokens": say(HEADERS, event("The"), then="hang"),
    "in a line that never ends": drip(HEADERS, *[b"data: "] * 100),
}


@pytest.mark.parametrize("hang", HANGS)
async def test_a_server_that_hangs_is_given_up(checkpoint_folder: Path, hang: str) -> None:
    """The first token and each later one have a limit, after which the stream fails."""
    limits = {"first_token_timeout_s": 0.3, "token_timeout_s": 0.3}
    async with faulty(checkpoint_folder, limits) as (server, subject):
        server.completion = HANGS[hang]
        with pytest.raises(EngineFailed, match=r"was silent for 0\.3 s"):
            await subject.ask(QUESTION)
        assert subject.engine.load_figures().running_sequences == 0


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_broken_stream_is_the_engines_fault(checkpoint_folder: Path, fault: str) -> None:
    """Whatever the server does wrong ends as EngineFailed: another worker may serve it."""
    behaviour, reason = BROKEN[fault]
    async with faulty(checkpoint_folder) as (server, subject):
        server.completion = behaviour
        with pytest.raises(EngineFailed, match=reason):
            await subject.ask(QUESTION)
        assert subject.engine.load_figures().running_sequences == 0
        server.completion = None
        assert (await subject.ask(QUESTION)).text() == "The sea is blue"


async def test_whole_answers_leave_no_connection_behind(checkpoint_folder: Path) -> None:
    """A reader that goes while the connection is being given back does not keep it for ever.

    It did once, and after a dozen answers every request and probe waited in vain.
    """
    async with faulty(checkpoint_folder) as (server, subject), asyncio.timeout(30):
        server.completion = at_once(event("The sea", "length"), DONE)
        for _ in range(3 * MAX_SEQUENCES):
            assert (await subject.ask(QUESTION)).text() == "The sea"


async def test_a_slow_reader_keeps_no_one(checkpoint_folder: Path) -> None:
    """A burst is read to its end though nobody takes it: its slot is free, and no token lost."""
    async with faulty(checkpoint_folder) as (server, subject), asyncio.timeout(30):
        server.completion = say(HEADERS, event(" sea") * 500, event("", "length"), DONE)
        async with subject.engine.submit(await subject.request(QUESTION, 500)) as deltas:
            while not subject.engine.load_figures().running_sequences:
                await asyncio.sleep(0.001)
            while subject.engine.load_figures().running_sequences:
                await asyncio.sleep(0.001)
            answer = await collect(deltas)
        assert answer.text() == " sea" * 500
        assert len(answer.ids()) == 500


UTF8 = b'data: {"choices": [{"index": 0, "text": "' + "海 🌊".encode() + b'"}]}\n\n'
LAST = event("", "stop")
ODD = {
    "a character in two packets": drip(
        HEADERS, *[UTF8[n : n + 1] for n in range(len(UTF8))], LAST, pause_s=0.001),
    "no [DONE]": say(HEADERS, UTF8, LAST),
    "comments and other fields": say(
        HEADERS, b": keep-alive\n\nevent: x\nid: 7\n", UTF8, b":\n\n", LAST, DONE),
    "lines of CR LF": say(HEADERS, UTF8.replace(b"\n", b"\r\n"), LAST.replace(b"\n", b"\r\n")),
    "no content type": say(
        HEADERS.replace(b"content-type: text/event-stream\r\n", b""), UTF8, LAST),
}  # fmt: skip


@pytest.mark.parametrize("oddity", ODD)
async def test_an_odd_stream_is_read(checkpoint_folder: Path, oddity: str) -> None:
    """What servers may do, and some do, changes nothing."""
    async with faulty(checkpoint_folder) as (server, subject):
        server.completion = ODD[oddity]
        answer = await subject.ask(QUESTION)
        assert answer.text() == "海 🌊"
        assert answer.reason() is FinishReason.STOP


async def test_an_endless_list_of_models_is_given_up(checkpoint_folder: Path) -> None:
    """Neither its length nor its depth can hurt the engine that asks."""
    long = b'{"data": [{"id": "smollm2"}], "more": "' + b"x" * 2**23 + b'"}'
    for models in (long, b"[" * 100_000):
        async with faulty_server() as server:
            server.models = models
            with pytest.raises(SetupError, match="something else"):
                async with remote(server.base_url, checkpoint_folder, load_timeout_s=2):
                    pass


async def test_a_refusal_is_the_callers(checkpoint_folder: Path) -> None:
    """400 is an invalid request; the engine stays."""
    async with faulty(checkpoint_folder) as (server, subject):
        server.completion = refuse(400)
        with pytest.raises(InvalidRequest, match="for a reason"):
            await subject.ask(QUESTION)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"), [(b"retry-after: 7\r\n", 7), (b"", 1), (b"retry-after: soon\r\n", 1),
                            (b"retry-after: 1e9\r\n", 60), (b"retry-after: nan\r\n", 1)],
)  # fmt: skip
async def test_a_busy_server_says_when_to_come_back(
    checkpoint_folder: Path, status: int, header: bytes, seconds: float
) -> None:
    """429 and 503 are Overloaded with the server's own time, within bounds."""
    async with faulty(checkpoint_folder) as (server, subject):
        server.completion = refuse(status, header)
        with pytest.raises(Overloaded) as refused:
            await subject.ask(QUESTION)
        assert refused.value.retry_after_s == seconds


async def test_a_silent_server_ends_the_engine(checkpoint_folder: Path) -> None:
    """Probes that find nobody make the engine fail, with or without requests."""
    settings = {"probe_interval_s": 0.05, "probe_timeout_s": 0.1, "max_failed_probes": 2}
    async with faulty(checkpoint_folder, None, **settings) as (server, subject):
        server.models = None
        async with asyncio.timeout(10):
            failure = await subject.engine.wait_failed()
        assert "did not answer within 0.1 s (2 times in a row)" in failure.text
        with pytest.raises(EngineFailed):
            await subject.ask(QUESTION)


async def test_a_model_that_is_gone_ends_the_engine(checkpoint_folder: Path) -> None:
    """A server that now serves something else is not used any more."""
    async with faulty(checkpoint_folder, probe_interval_s=0.05) as (server, subject):
        server.models = ["other"]
        async with asyncio.timeout(10):
            failure = await subject.engine.wait_failed()
        assert "no model 'smollm2', only other" in failure.text


async def test_a_wrong_model_is_told_at_the_start(checkpoint_folder: Path) -> None:
    """The names that the server has are in the error."""
    async with faulty_server() as server:
        server.models = ["a", "b"]
        with pytest.raises(SetupError, match="no model 'smollm2', only a, b"):
            async with remote(server.base_url, checkpoint_folder):
                pass


async def test_nobody_there_is_told_at_the_start(checkpoint_folder: Path) -> None:
    """The wait for a server ends, and says what was missing."""
    with pytest.raises(SetupError, match=r"no remote server within 0.2 s: .*base_url"):
        async with remote("http://127.0.0.1:9/v1", checkpoint_folder, load_timeout_s=0.2):
            pass


async def test_text_alone_has_exact_text(checkpoint_folder: Path) -> None:
    """Of a server that tells no ids, ids are made that read as its text."""
    async with faulty(checkpoint_folder) as (server, subject):
        text = "Größe 日本 😀"
        server.completion = say(HEADERS, event(text), event("", "stop"), DONE)
        answer = await subject.ask(QUESTION)
        assert answer.text() == text == subject.decode(answer.ids())
        assert answer.reason() is FinishReason.STOP
        assert not subject.engine.facts.capabilities.exact_continuation
        body = server.bodies[-1]
        assert body["prompt"] == list((await subject.request(QUESTION)).prompt_token_ids)
        assert "top_k" not in body


async def test_what_text_servers_may_not_know_is_refused(checkpoint_folder: Path) -> None:
    """A sampling parameter that might be ignored is refused instead."""
    async with faulty(checkpoint_folder) as (_, subject):
        with pytest.raises(InvalidRequest, match=r"sampling\.top_k"):
            await subject.ask(QUESTION, sampling=Sampling(temperature=1, top_k=5))


async def test_a_key_is_sent_and_never_told(checkpoint_folder: Path, tmp_path: Path) -> None:
    """A missing key file is a SetupError that names it."""
    with pytest.raises(SetupError, match="api_key_file"):
        async with remote("http://127.0.0.1:9", checkpoint_folder, api_key_file=tmp_path / "none"):
            pass


def test_a_base_url_needs_its_scheme() -> None:
    """A bare host is refused when the settings are read."""
    with pytest.raises(ValueError, match="does not begin with http"):
        RemoteSettings(base_url="10.0.0.7:8000")


async def test_llama_cpp_is_read_by_ids(llama_server: str, smollm2_path: Path) -> None:
    """A real server: greedy repeats, a takeover goes on, a stop string cuts, ids are its own."""
    async with remote(llama_server, smollm2_path) as subject:
        whole = await subject.ask(QUESTION, 16)
        assert whole.reason() is FinishReason.LENGTH
        assert len(whole.ids()) == 16
        assert whole.text() == subject.decode(whole.ids())
        delivered = Continuation(tuple(whole.ids()[:7]), subject.decode(whole.ids()[:6]))
        rest = await subject.ask(QUESTION, 16, continuation=delivered)
        assert rest.deltas[0].offset == 7
        assert whole.ids()[:7] + rest.ids() == whole.ids()
        assert rest.cached() is not None
        stop = whole.text()[9:14]
        assert (await subject.ask(QUESTION, 16, stop=(stop,))).text() == whole.text()[:9]
        values = (await subject.ask(QUESTION, 4, logprobs=0)).logprobs()
        assert len(values) == 4
        assert all(each.logprob <= 0 for each in values)


async def test_llama_cpp_tells_characters_of_several_tokens(
    llama_server: str, smollm2_path: Path
) -> None:
    """Ids that llama.cpp leaves out are made again, so that text is whole."""
    async with remote(llama_server, smollm2_path) as subject:
        answer = await subject.ask("Repeat only this: 日本語 😀 東京", 24)
        assert not answer.text().isascii()
        assert answer.text() == subject.decode(answer.ids())


async def test_llama_cpp_follows_a_schema(llama_server: str, smollm2_path: Path) -> None:
    """A grammar goes through; one the server does not know is refused."""
    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    async with remote(llama_server, smollm2_path) as subject:
        answer = await subject.ask("Is it?", 32, guided=Guided("json_schema", schema))
        assert isinstance(json.loads(answer.text())["ok"], bool)
        with pytest.raises(InvalidRequest, match="guided"):
            await subject.ask("Is it?", guided=Guided("regex", "yes|no"))


async def test_leaving_stops_the_real_server(llama_server: str, smollm2_path: Path) -> None:
    """A reader that leaves frees its slot at once, and the server takes the next request."""
    async with remote(llama_server, smollm2_path) as subject:
        async with subject.engine.submit(await subject.request(QUESTION, 2000)) as deltas:
            await anext(deltas)
        assert subject.engine.load_figures().running_sequences == 0
        assert len((await subject.ask(QUESTION, 4)).ids()) == 4


async def test_a_killed_server_ends_the_stream(smollm2_path: Path) -> None:
    """A server that dies in the middle ends the stream, and then the engine."""
    with LlamaServer(smollm2_path) as server:
        async with remote(server.base_url, smollm2_path, probe_interval_s=0.1) as subject:
            async with subject.engine.submit(await subject.request(QUESTION, 2000)) as deltas:
                await anext(deltas)
                server.process.kill()
                with pytest.raises(SidecacheError) as failed:
                    async for _ in deltas:
                        pass
                assert isinstance(failed.value, EngineFailed)
            async with asyncio.timeout(30):
                await subject.engine.wait_failed()
