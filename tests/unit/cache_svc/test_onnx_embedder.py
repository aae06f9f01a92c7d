"""The real embedder: whole texts, unit vectors, clear refusals."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cache_svc.embedder import NotComparable
from cache_svc.embedders.onnx import MINILM_TOKENIZER, OnnxEmbedder
from cache_svc.embedders.sentence_transformers import SentenceTransformersEmbedder
from cache_svc.open_embedder import load_embedder
from cache_svc.settings import SemanticSettings
from cache_svc.vector_index import Matrix
from sidecache.errors import SetupError


@pytest.fixture(scope="module")
def embedder(minilm_path: Path) -> OnnxEmbedder:
    return OnnxEmbedder(minilm_path)


def test_unit_float32_vectors(embedder: OnnxEmbedder) -> None:
    """Vectors are float32, of the model's dimension and of unit norm."""
    vectors = embedder.embed(["one", "two words", "a somewhat longer sentence"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)


def test_a_batch_changes_nothing(embedder: OnnxEmbedder) -> None:
    """A text has the same vector alone and padded beside a longer one."""
    texts = ["How do I cancel?", "What is the capital of France? " * 8]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose((together * alone).sum(axis=1), 1, atol=2e-3)


def test_two_threads_change_nothing(embedder: OnnxEmbedder) -> None:
    """A text has bit for bit the vector it has alone while another thread embeds too."""
    texts = ["How do I cancel?", "What is the capital of France? " * 4]
    alone = [embedder.embed([text]) for text in texts]

    def embed(turn: int) -> tuple[int, Matrix]:
        row = turn % len(texts)
        return row, embedder.embed([texts[row]])

    with ThreadPoolExecutor(2) as threads:
        for row, vectors in threads.map(embed, range(16)):
            np.testing.assert_array_equal(vectors, alone[row])


def test_meaning_is_near(embedder: OnnxEmbedder) -> None:
    """A paraphrase is nearer than another subject."""
    base, near, far = embedder.embed(
        ["What is the capital of France?", "Which city is France's capital?", "How to bake bread"]
    )
    assert base @ near > 0.8
    assert base @ far < 0.3


def test_endings_count(embedder: OnnxEmbedder) -> None:
    """Texts beyond the tokenizer file's own limit of 128 pieces differ by their endings."""
    start = "the quick brown fox jumps over the lazy dog " * 18
    one, other = embedder.embed([start + "in Paris", start + "and quantum mechanics is hard"])
    assert one @ other < 0.9999


def test_window(minilm_path: Path) -> None:
    """A text one piece over the window is refused, not cut."""
    embedder = OnnxEmbedder(minilm_path, window_tokens=10)
    assert embedder.can_embed("a " * 8)  # and two border marks
    assert not embedder.can_embed("a " * 9)
    with pytest.raises(NotComparable, match="10 word pieces"):
        embedder.embed(["a " * 9])


@pytest.mark.parametrize("text", ["", "   ", "party \U0001f389 tonight", "x" * 101])
def test_what_the_model_cannot_see(embedder: OnnxEmbedder, text: str) -> None:
    """Nothing at all, an emoji or an endless word looks like any other such text."""
    assert not embedder.can_embed(text)


def test_fingerprint_follows_the_files(minilm_path: Path, tmp_path: Path) -> None:
    """Another tokenizer is another embedder; the same files are the same one."""
    changed = tmp_path / "tokenizer.json"
    changed.write_bytes(MINILM_TOKENIZER.read_bytes() + b"\n")
    same = OnnxEmbedder(minilm_path)
    assert same.fingerprint == OnnxEmbedder(minilm_path).fingerprint
    assert same.fingerprint != OnnxEmbedder(minilm_path, tokenizer=changed).fingerprint


def test_missing_weights(tmp_path: Path) -> None:
    """A missing file says what to run."""
    with pytest.raises(SetupError, match="sidecache pull"):
        OnnxEmbedder(tmp_path / "model.onnx")


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_damaged_weights(minilm_path: Path, tmp_path: Path, damage: str) -> None:
    """A damaged file is refused at the start, in one clear sentence."""
    content = {
        "empty": b"",
        "garbage": b"not a model" * 1000,
        "truncated": minilm_path.read_bytes()[:100_000],
    }[damage]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"damaged or not an ONNX model"):
        OnnxEmbedder(path)


def test_damaged_tokenizer(minilm_path: Path, tmp_path: Path) -> None:
    """So is a damaged tokenizer."""
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(SetupError, match="tokenizer"):
        OnnxEmbedder(minilm_path, tokenizer=path)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says what to install."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if not installed
    with pytest.raises(SetupError, match=r"sidecache\[sentence-transformers\]"):
        SentenceTransformersEmbedder(tmp_path)


def test_sentence_transformers_needs_a_folder() -> None:
    """Choosing the other embedder without its model names the setting."""
    with pytest.raises(SetupError, match=r"semantic\.embedder_path"):
        load_embedder(SemanticSettings(embedder="sentence-transformers"))
