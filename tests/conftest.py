"""What every room's tests share: the pinned weights, fetched once."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import settings

from sidecache import weights
from tests.fixtures.checkpoint import make_checkpoint

if TYPE_CHECKING:
    from tests.contract.engines import Subject
    from tests.fixtures.vllm_server import VllmServer

# How long one example takes says more about what else the machine does.
settings.register_profile("sidecache", deadline=None)
settings.load_profile("sidecache")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model, SmolLM2-135M-Instruct, as a GGUF file."""
    return weights.pull("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def checkpoint_folder(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a real tokenizer and no weights."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), smollm2_path)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The real embedder, all-MiniLM-L6-v2 in int8, as an ONNX file."""
    return weights.pull("minilm-l6-v2-int8")


@pytest.fixture(scope="session")
def tiny_llama(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, as a checkpoint folder."""
    from tests.fixtures.tiny_llama import write_tiny_llama  # noqa: PLC0415 - numpy, only if used

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", smollm2_path)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_subject(tiny_llama: Path) -> AsyncIterator["Subject"]:
    """One vLLM for all tests: it takes most of a minute to start."""
    from tests.fixtures.vllm import vllm  # noqa: PLC0415 - an environment of its own

    async with vllm(tiny_llama) as subject:
        yield subject


@pytest.fixture(scope="session")
def llama_server(smollm2_path: Path) -> Iterator[str]:
    """Base URL of llama.cpp's server with the real model, for everyone."""
    from tests.fixtures.llama_server import LlamaServer  # noqa: PLC0415 - only if used

    with LlamaServer(smollm2_path) as server:
        yield server.base_url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def remote_subject(llama_server: str, smollm2_path: Path) -> AsyncIterator["Subject"]:
    """The remote engine on llama.cpp's real server."""
    from tests.fixtures.llama_server import remote  # noqa: PLC0415 - only if used

    async with remote(llama_server, smollm2_path) as subject:
        yield subject


@pytest.fixture(scope="session")
def vllm_server(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["VllmServer"]:
    """vLLM's own server with the tiny model, for everyone."""
    from tests.fixtures.vllm_server import VllmServer  # noqa: PLC0415 - only if used

    with VllmServer(tiny_llama, tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def remote_vllm_subject(
    vllm_server: "VllmServer", tiny_llama: Path
) -> AsyncIterator["Subject"]:
    """The remote engine on vLLM's real server."""
    from tests.fixtures.llama_server import remote  # noqa: PLC0415 - only if used
    from tests.fixtures.tiny_llama import ADAPTER  # noqa: PLC0415
    from tests.fixtures.vllm_server import MODEL  # noqa: PLC0415

    async with remote(
        vllm_server.base_url, tiny_llama, model=MODEL, priorities=True, adapters={ADAPTER: ADAPTER}
    ) as subject:
        yield subject
