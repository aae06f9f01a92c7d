"""The remote engine over HTTP/2: Hypercorn's, in front of llama.cpp's real server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sidecache.errors import SetupError
from tests.contract.engines import Subject
from tests.contract.test_engine import QUESTION
from tests.fixtures.http2_relay import Relay, http2_relay
from tests.fixtures.llama_server import remote
from tests.unit.observability.test_tls import Certificates

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(llama_server: str) -> AsyncIterator[Relay]:
    """A server of HTTP/2 without TLS."""
    async with http2_relay(llama_server) as relay:
        yield relay


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def subject(relay: Relay, smollm2_path: Path) -> AsyncIterator[Subject]:
    """An engine that knows in advance that its server speaks HTTP/2."""
    async with remote(relay.base_url, smollm2_path, http="2") as subject:
        yield subject


async def only(relay: Relay, streams: int) -> None:
    """Wait until the server answers so many requests, and no more."""
    async with asyncio.timeout(5):
        while relay.streams != streams:
            await asyncio.sleep(0.01)


async def test_streams_share_one_connection(relay: Relay, subject: Subject) -> None:
    """Everything goes by HTTP/2, over one connection, and answers are the same as alone."""
    alone = await subject.ask(QUESTION, 12)
    answers = await asyncio.gather(*(subject.ask(QUESTION, 12) for _ in range(6)))
    assert {tuple(each.ids()) for each in answers} == {tuple(alone.ids())}
    assert relay.versions == {"2"}
    assert len(relay.connections) == 1


async def test_leaving_ends_one_stream_and_no_other(relay: Relay, subject: Subject) -> None:
    """Who leaves, in the middle or before the first token, is all that the server drops."""
    await only(relay, 0)
    request = await subject.request(QUESTION, 2000)
    async with subject.engine.submit(request) as stays:
        await anext(stays)
        async with subject.engine.submit(request) as leaves:
            await anext(leaves)
            await only(relay, 2)
        await only(relay, 1)
        async with subject.engine.submit(request) as leaves:
            reading = asyncio.ensure_future(anext(leaves))
            await only(relay, 2)
        reading.cancel()
        await only(relay, 1)
        for _ in range(3):
            assert (await anext(stays)).token_ids
    await only(relay, 0)
    assert len(relay.connections) == 1


async def test_tls_agrees_on_http2(
    llama_server: str, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over https:// HTTP/2 is agreed on; an authority of one's own is trusted, no unknown one."""
    made = Certificates.make(tmp_path_factory.mktemp("certificates"))
    files = {"certfile": made.path("server.pem"), "keyfile": made.path("server.key")}
    async with http2_relay(llama_server, **files) as relay:
        async with remote(relay.base_url, smollm2_path, ca_file=made.path("ca.pem")) as subject:
            assert len((await subject.ask(QUESTION, 4)).ids()) == 4
        assert relay.versions == {"2"}
        with pytest.raises(SetupError, match="certificate"):
            async with remote(relay.base_url, smollm2_path, load_timeout_s=0.5):
                pass
