"""Any sentence-transformers model: the extra ``[sentence-transformers]``."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from cache_svc.embedder import BORDER_PIECES, EmbeddingFailed, NotComparable
from cache_svc.vector_index import Matrix
from sidecache.errors import SetupError


class SentenceTransformersEmbedder:
    """A sentence-transformers model behind the Embedder protocol.

    Args:
        model: folder of a saved model.
        window_tokens: most word pieces of a text; None: what the model says.
        device: "cpu" or "cuda". The vectors, and so the fingerprint, are the same on both.

    Raises:
        SetupError: the extra is not installed, the folder holds no model, or the GPU is
            missing or has no memory for it.
    """

    def __init__(
        self, model: Path, *, window_tokens: int | None = None, device: str = "cpu"
    ) -> None:
        self._device = device
        # Its tokenizer refuses a second thread ("Already borrowed").
        self._one_thread = RLock()
        self._model = _load(model, device)
        self._window_tokens = window_tokens or int(self._model.max_seq_length)
        self._unknown = self._model.tokenizer.unk_token_id
        self.dimension: int = int(self._model.get_embedding_dimension())
        self.fingerprint: str = _fingerprint(model)

    def can_embed(self, text: str) -> bool:
        with self._one_thread:
            ids = self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return BORDER_PIECES < len(ids) <= self._window_tokens and self._unknown not in ids

    def embed(self, texts: Sequence[str]) -> Matrix:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._one_thread:
            return self._embed(texts)

    def _embed(self, texts: Sequence[str]) -> Matrix:
        if not all(map(self.can_embed, texts)):
            raise NotComparable(
                f"a text has over {self._window_tokens} word pieces, or pieces the model "
                "does not know; ask can_embed first"
            )
        try:
            vectors: Matrix = self._model.encode(
                list(texts),
                batch_size=len(texts),
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ).astype(np.float32)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            _give_cached_memory_back()
            raise EmbeddingFailed(
                f"{self._device} has no memory left for {len(texts)} texts"
            ) from error
        return vectors


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's own class for it has moved between releases; its name has not."""
    return type(error).__name__ == "OutOfMemoryError"


def _give_cached_memory_back() -> None:
    """What torch keeps for itself would be missing in the next try."""
    import torch  # noqa: PLC0415  as below

    torch.cuda.empty_cache()


def _check_device(device: str) -> None:
    import torch  # noqa: PLC0415  as below

    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            "semantic.embedder_device is 'cuda', and torch sees no GPU; check nvidia-smi and "
            "that torch is a CUDA build, or set it to 'cpu'"
        )


def _load(model: Path, device: str) -> Any:
    try:
        # Imported here: it takes seconds and is not part of the base stack.
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(
            "the sentence-transformers embedder is not installed; "
            "run: pip install 'sidecache[sentence-transformers]'"
        ) from error
    if not (model / "modules.json").is_file():
        raise SetupError(f"{model} is no sentence-transformers model: it has no modules.json")
    _check_device(device)
    try:
        return SentenceTransformer(str(model), device=device, local_files_only=True)
    except Exception as error:  # torch, safetensors and transformers each raise their own
        if _is_out_of_memory(error):
            raise SetupError(f"{device} has no memory for the model in {model}") from error
        raise SetupError(f"the model in {model} cannot be loaded: {error}") from error


def _fingerprint(folder: Path) -> str:
    """Hash of every weight and configuration file, by name, in name order."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in {".safetensors", ".bin", ".json", ".txt"}:
            digest.update(str(file.relative_to(folder)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
