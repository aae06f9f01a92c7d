"""MiniLM through ONNX Runtime: the embedder of the base stack, without torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from cache_svc.embedder import BORDER_PIECES, NotComparable
from cache_svc.vector_index import Matrix
from sidecache.errors import SetupError

# What the axes of the token states are.
_STATES = ("batch", "tokens", "dimension")
# The tokenizer of sentence-transformers/all-MiniLM-L6-v2; see minilm/NOTICE.
MINILM_TOKENIZER = Path(__file__).parent.parent / "minilm" / "tokenizer.json"


class OnnxEmbedder:
    """A BERT-like sentence encoder: mean of the token states, scaled to unit norm.

    Args:
        weights: an ONNX file with inputs input_ids, attention_mask and maybe
            token_type_ids, and one output of shape (batch, tokens, dimension).
        window_tokens: most word pieces of a text, its two border marks included.
            The model was trained on 256.
        threads: ONNX Runtime's threads. One text on one thread costs the least
            CPU; more threads help it little and starve their neighbours.

    Raises:
        SetupError: the weights or the tokenizer are missing or damaged.
    """

    def __init__(
        self,
        weights: Path,
        *,
        tokenizer: Path = MINILM_TOKENIZER,
        window_tokens: int = 256,
        threads: int = 1,
    ) -> None:
        self._window_tokens = window_tokens
        self._tokenizer = _load_tokenizer(tokenizer)
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self._session = _load_session(weights, threads)
        self._inputs = {i.name for i in self._session.get_inputs()}
        self.dimension: int = _dimension(self._session, weights)
        self.fingerprint: str = _fingerprint(weights, tokenizer)

    def can_embed(self, text: str) -> bool:
        return self._fits(self._tokenizer.encode(text))

    def embed(self, texts: Sequence[str]) -> Matrix:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        if not all(map(self._fits, encodings)):
            raise NotComparable(
                f"a text has over {self._window_tokens} word pieces, or pieces the model "
                "does not know; ask can_embed first"
            )
        ids, mask = _pad(encodings)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states = self._session.run(None, {n: a for n, a in feed.items() if n in self._inputs})[0]
        return _mean_pool(states, mask)

    def _fits(self, encoding: Encoding) -> bool:
        # An unknown piece (an emoji, a word of over 100 letters) has the vector of
        # every other unknown piece: texts that differ there would look the same.
        ids = encoding.ids
        return BORDER_PIECES < len(ids) <= self._window_tokens and self._unknown not in ids


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise SetupError(f"the tokenizer {path} cannot be read: {error}") from error
    # The file asks for 128 tokens, always: every text would cost as much as one of
    # 128, and longer ones would lose their endings and compare as equal.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load_session(weights: Path, threads: int) -> onnxruntime.InferenceSession:
    if not weights.is_file():
        raise SetupError(
            f"the embedder's weights are not at {weights}; run `sidecache pull`, or set "
            "semantic.enabled to false to serve exact hits only"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads would spin for work that comes a few times a second.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(weights), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        raise SetupError(
            f"the embedder's weights at {weights} cannot be loaded ({type(error).__name__}); the "
            "file is damaged or not an ONNX model: remove it and run `sidecache pull`"
        ) from error


def _dimension(session: onnxruntime.InferenceSession, weights: Path) -> int:
    shape = session.get_outputs()[0].shape
    names = {i.name for i in session.get_inputs()}
    if len(shape) != len(_STATES) or not isinstance(shape[-1], int) or "input_ids" not in names:
        raise SetupError(
            f"{weights} is no sentence encoder: its first output has shape {shape}, not "
            "(batch, tokens, dimension)"
        )
    return shape[-1]


def _fingerprint(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _pad(encodings: Sequence[Encoding]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and attention mask, int64, shape (batch, longest text)."""
    longest = max(len(e.ids) for e in encodings)
    ids = np.zeros((len(encodings), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        ids[row, :length] = encoding.ids
        mask[row, :length] = 1
    return ids, mask


def _mean_pool(states: np.ndarray, mask: np.ndarray) -> Matrix:
    """Mean of the states under the mask, unit norm: (batch, tokens, dim) to (batch, dim)."""
    weights = mask[:, :, None].astype(np.float32)
    means = (states * weights).sum(axis=1) / weights.sum(axis=1)
    vectors: Matrix = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    return vectors
