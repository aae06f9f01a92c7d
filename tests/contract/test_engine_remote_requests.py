"""What the remote engine asks of a server, and what it makes of what the server says of itself."""

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from inference_svc.engine import Continuation, Sampling
from inference_svc.engines.remote import RemoteEngine
from sidecache.errors import EngineFailed, InvalidRequest, NotFound, SetupError
from tests.contract.engines import Subject
from tests.contract.test_engine_remote import QUESTION, faulty
from tests.fixtures.faulty_server import (
    HEADERS,
    MODEL,
    FaultyServer,
    answer,
    event,
    faulty_server,
    refuse,
    say,
)
from tests.fixtures.llama_server import remote

DONE = b"data: [DONE]\n\n"


def engine_of(subject: Subject) -> RemoteEngine:
    assert isinstance(subject.engine, RemoteEngine)
    return subject.engine


async def test_a_continuation_asks_for_the_rest_only(checkpoint_folder: Path) -> None:
    """The tokens delivered follow the prompt, and are not counted again."""
    async with faulty(checkpoint_folder) as (server, subject):
        ids = engine_of(subject)._tokenizer.encode("The sea is")
        text = subject.decode(ids)
        rest = await subject.ask(QUESTION, 20, continuation=Continuation(tuple(ids), text))
        prompt = (await subject.request(QUESTION)).prompt_token_ids
        assert server.bodies[-1]["prompt"] == [*prompt, *ids]
        assert server.bodies[-1]["max_tokens"] == 20 - len(ids)
        assert rest.deltas[0].offset == len(ids)


async def test_a_seed_goes_with_sampling_only(checkpoint_folder: Path) -> None:
    """In 32 bits with a sign; greedy requests say neither it nor top_p."""
    async with faulty(checkpoint_folder) as (server, subject):
        await subject.ask(QUESTION, sampling=Sampling(temperature=0.7, top_p=0.9, seed=2**31 + 5))
        sampled = server.bodies[-1]
        await subject.ask(QUESTION)
        greedy = server.bodies[-1]
        assert (sampled["temperature"], sampled["top_p"]) == (0.7, 0.9)
        assert 0 <= sampled["seed"] < 2**31
        assert greedy["temperature"] == 0
        assert not {"seed", "top_p"} & set(greedy)


async def test_an_adapter_is_the_servers_model(checkpoint_folder: Path) -> None:
    """By the name that the server has for it; one that is not configured is refused."""
    adapters = {"tuned": "smollm2-tuned"}
    async with faulty_server() as server:
        with pytest.raises(SetupError, match="no model 'smollm2-tuned'"):
            async with remote(server.base_url, checkpoint_folder, adapters=adapters):
                pass
        server.models = [MODEL, "smollm2-tuned"]
        async with remote(server.base_url, checkpoint_folder, adapters=adapters) as subject:
            with pytest.raises(NotFound, match="this worker has tuned"):
                await subject.ask(QUESTION, adapter="other")
            server.completion = say(HEADERS, event("x", "length", model="smollm2-tuned"), DONE)
            assert (await subject.ask(QUESTION, adapter="tuned")).text() == "x"
            assert server.bodies[-1]["model"] == "smollm2-tuned"
            with pytest.raises(EngineFailed, match="answered as model"):
                await subject.ask(QUESTION)


async def test_what_may_be_ignored_is_refused(checkpoint_folder: Path) -> None:
    """A repetition penalty is nothing that OpenAI's interface has."""
    async with faulty(checkpoint_folder) as (_, subject):
        with pytest.raises(InvalidRequest, match=r"sampling\.repetition_penalty"):
            await subject.ask(QUESTION, sampling=Sampling(repetition_penalty=1.1))


async def test_answers_of_other_weights_are_other_answers(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """The revision follows from what the operator says, the server's model and the tokenizer."""
    other = tmp_path / "other"
    shutil.copytree(checkpoint_folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    async def revision(folder: Path = checkpoint_folder, **settings: Any) -> str:
        async with faulty_server() as server:
            server.models = [MODEL, "twin"]
            server.completion = say(HEADERS, event("", "length", model=""), DONE)
            async with remote(server.base_url, folder, **settings) as subject:
                return subject.engine.facts.revision

    told = [
        await revision(),
        await revision(revision="v2"),
        await revision(model="twin"),
        await revision(other),
    ]
    assert len(set(told)) == len(told)


async def test_the_key_is_sent_with_every_request(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Probes and completions; the file may end with a newline."""
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    async with faulty(checkpoint_folder, api_key_file=file) as (server, subject):
        await subject.ask(QUESTION)
        assert len(server.heads) >= 3
        assert all(b"authorization: bearer s3cret\r\n" in head.lower() for head in server.heads)


async def test_the_key_goes_nowhere_else(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where a server points, nor to a proxy that the environment names."""
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with faulty_server() as elsewhere, faulty(checkpoint_folder) as (server, subject):
        server.completion = refuse(307, f"location: {elsewhere.base_url}/completions\r\n".encode())
        with pytest.raises(EngineFailed, match="answers 307"):
            await subject.ask(QUESTION)
        assert not elsewhere.heads


async def test_a_connection_that_was_hung_up_meanwhile_is_no_failure(
    checkpoint_folder: Path,
) -> None:
    """A server may end an idle connection as the next request is on its way."""
    hung_up = 0
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Models, one completion, and nothing to the request after that."""
        nonlocal hung_up
        serving.append(asyncio.current_task())
        has_answered = False
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if has_answered:
                    hung_up += 1
                    break
                data = json.dumps({"data": [{"id": MODEL} | FaultyServer().facts]}).encode()
                if has_answered := head.startswith(b"POST"):
                    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                    await reader.readexactly(int(length))
                    data = event("The sea", "length") + DONE
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    async with (
        asyncio.timeout(30),
        remote(url, checkpoint_folder, probe_interval_s=60) as subject,
    ):
        for _ in range(3):
            assert (await subject.ask(QUESTION)).text() == "The sea"
    listener.close()
    await asyncio.gather(*filter(None, serving))
    assert hung_up


async def test_a_broken_stream_makes_the_server_suspect(checkpoint_folder: Path) -> None:
    """It is asked at once whether it is there, not when its next probe is due."""
    async with faulty(checkpoint_folder, probe_interval_s=3600) as (server, subject):
        server.completion, server.models = refuse(500), ["other"]
        with pytest.raises(EngineFailed):
            await subject.ask(QUESTION)
        async with asyncio.timeout(10):
            assert "only other" in (await subject.engine.wait_failed()).text


async def test_the_death_of_a_server_ends_what_runs_there(checkpoint_folder: Path) -> None:
    """Long before the silence of a stream would say so."""
    settings = {"probe_interval_s": 0.05, "probe_timeout_s": 0.1, "max_failed_probes": 2}
    async with faulty(checkpoint_folder, None, **settings) as (server, subject):
        server.completion = say(HEADERS, event("The"), then="hang")
        async with (
            asyncio.timeout(15),
            subject.engine.submit(await subject.request(QUESTION)) as deltas,
        ):
            await anext(deltas)
            server.models = None
            with pytest.raises(EngineFailed, match="2 times in a row"):
                async for _ in deltas:
                    pass


async def test_one_probe_that_fails_is_forgotten_with_the_next(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only failures in a row end the engine."""
    settings = {"probe_interval_s": 0.02, "max_failed_probes": 2}
    async with faulty(checkpoint_folder, None, **settings) as (server, subject):
        probes, enough = 0, asyncio.Event()

        async def flap(writer: asyncio.StreamWriter) -> None:
            nonlocal probes
            probes += 1
            if probes >= 8:
                enough.set()
            listed = {"data": [{"id": MODEL} | server.facts]}
            answer(writer, 500 if probes % 2 else 200, listed)

        monkeypatch.setattr(server, "_list", flap)
        async with asyncio.timeout(20):
            await enough.wait()
        assert (await subject.ask(QUESTION)).text() == "The sea is blue"


async def test_an_idle_engine_is_not_silent(checkpoint_folder: Path) -> None:
    """Nor is one that has just been asked: what counts is since when it owes an answer."""
    async with faulty(checkpoint_folder) as (server, subject):
        engine = engine_of(subject)
        engine._life._last_sign -= 1000
        assert engine.silent_s() == 0
        server.completion = say(then="hang")
        async with subject.engine.submit(await subject.request(QUESTION)) as deltas:
            first = asyncio.ensure_future(anext(deltas))
            async with asyncio.timeout(10):
                while not engine.load_figures().running_sequences:
                    await asyncio.sleep(0.005)
            assert engine.silent_s() < 500
            engine._life._last_sign -= 1000
            assert engine.silent_s() > 500
            first.cancel()


async def test_an_endless_refusal_is_cut_short(checkpoint_folder: Path) -> None:
    """Its status is known; the reason may be as long as it likes."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS.replace(b"200 OK", b"500 No"))
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with faulty(checkpoint_folder, {"first_token_timeout_s": 5.0}) as (server, subject):
        server.completion = endless
        with pytest.raises(EngineFailed, match="answers 500"):
            await subject.ask(QUESTION)


async def test_facts_that_only_the_operator_knows(checkpoint_folder: Path) -> None:
    """A context length that nobody tells; exact continuation where no ids are told is none."""
    async with faulty_server() as server:
        server.facts = {"owned_by": "somebody"}
        with pytest.raises(SetupError, match=r"set remote\.context_length"):
            async with remote(server.base_url, checkpoint_folder):
                pass
        settings: dict[str, Any] = {"context_length": 77, "exact_continuation": True}
        async with remote(server.base_url, checkpoint_folder, **settings) as subject:
            assert subject.engine.facts.context_length == 77
            assert not subject.engine.facts.capabilities.exact_continuation


async def test_ids_that_are_no_tokens_are_not_passed_on(checkpoint_folder: Path) -> None:
    """Neither beyond the vocabulary nor below it."""
    async with faulty_server() as server:
        server.completion = say(HEADERS, event("", "length"), DONE)
        async with remote(
            server.base_url, checkpoint_folder, dialect="vllm", probe_interval_s=60
        ) as subject:
            for token_id in (subject.engine.facts.vocabulary_size, -1):
                choice = {"index": 0, "text": "x", "token_ids": [token_id], "finish_reason": None}
                said = event("", choices=[choice])
                server.completion = say(HEADERS, said, event("", "stop"), DONE)
                with pytest.raises(EngineFailed, match=f"sent token {token_id}"):
                    await subject.ask(QUESTION)


@pytest.mark.parametrize(
    ("ids", "why"),
    [([1, 2, 3], "its tokens read differently"), ([], 'set remote.dialect to "openai"')],
)
async def test_another_models_tokenizer_is_found_out_at_the_start(
    checkpoint_folder: Path, ids: list[int], why: str
) -> None:
    """By ids that are not the text beside them, or by no ids where there should be some."""
    choice = {"index": 0, "text": "The sea", "token_ids": ids, "finish_reason": "length"}
    async with faulty_server() as server:
        server.completion = say(HEADERS, event("", choices=[choice]), DONE)
        with pytest.raises(SetupError, match=why):
            async with remote(server.base_url, checkpoint_folder, dialect="vllm"):
                pass


async def test_llama_cpps_own_defaults_are_not_ours(checkpoint_folder: Path) -> None:
    """Its penalties count all of a prompt and its answer, and no token is too unlikely."""
    async with faulty_server() as server:
        server.completion = say(HEADERS, event("", "length"), DONE)
        async with remote(
            server.base_url, checkpoint_folder, dialect="llama_cpp", probe_interval_s=60
        ) as subject:
            await subject.ask(QUESTION, 20, sampling=Sampling(repetition_penalty=1.2))
            body, prompt = server.bodies[-1], (await subject.request(QUESTION)).prompt_token_ids
            assert body["repeat_last_n"] == len(prompt) + 20
            assert (body["repeat_penalty"], body["min_p"], body["logprobs"]) == (1.2, 0.0, 1)


async def test_priorities_are_claimed_of_vllm_only(checkpoint_folder: Path) -> None:
    """Another server would take them and do nothing."""
    async with faulty_server() as server:
        with pytest.raises(SetupError, match=r"remote\.priorities is for vLLM"):
            async with remote(server.base_url, checkpoint_folder, priorities=True):
                pass


async def test_log_probabilities_are_told_whole_or_refused(checkpoint_folder: Path) -> None:
    """Of a character's parts llama.cpp tells one; the rest would be made up."""
    told = {"content": [{"id": 5, "logprob": -0.5}]}
    choice = {"index": 0, "text": "日本", "logprobs": told, "finish_reason": "length"}
    async with faulty_server() as server:
        server.completion = say(HEADERS, event("", "length"), DONE)
        async with remote(
            server.base_url, checkpoint_folder, dialect="llama_cpp", probe_interval_s=60
        ) as subject:
            server.completion = say(HEADERS, event("", choices=[choice]), DONE)
            assert (await subject.ask(QUESTION)).text() == "日本"
            with pytest.raises(InvalidRequest, match="parts of a character"):
                await subject.ask(QUESTION, logprobs=0)
