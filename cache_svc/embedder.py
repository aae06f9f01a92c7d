"""What an embedder is: texts in, unit vectors of their meaning out."""

from collections.abc import Sequence
from typing import Protocol

from cache_svc.vector_index import Matrix
from sidecache.errors import SidecacheError

# The marks a BERT-like tokenizer sets around every text; alone they mean nothing.
BORDER_PIECES = 2


class NotComparable(SidecacheError):
    """The embedder cannot see all of this text, so its meaning cannot be compared."""

    reason = "NOT_COMPARABLE"


class EmbeddingFailed(SidecacheError):
    """The embedder broke, or what it returned is no vector."""

    reason = "EMBEDDING_FAILED"


class Embedder(Protocol):
    """Turns texts into vectors. Blocking; safe to use from two threads at once."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights and tokenizer: vectors of two fingerprints never mix."""
        ...

    @property
    def dimension(self) -> int:
        """Length of every vector."""
        ...

    def can_embed(self, text: str) -> bool:
        """Whether all of the text reaches the model: inside its window, every piece known."""
        ...

    def embed(self, texts: Sequence[str]) -> Matrix:
        """Embed texts that :meth:`can_embed` accepts.

        Returns:
            float32, shape (len(texts), dimension), rows of unit norm.

        Raises:
            NotComparable: a text is one that ``can_embed`` refuses.
        """
        ...
