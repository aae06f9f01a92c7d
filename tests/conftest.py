"""What every room's tests share: the pinned weights, fetched once."""

from pathlib import Path

import pytest

from sidecache import weights
from tests.fixtures.checkpoint import make_checkpoint


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
