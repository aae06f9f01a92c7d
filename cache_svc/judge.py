"""Do two answers say the same? Asked in the background, never while a caller waits."""

from typing import Protocol

from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.vector_index import Vector
from sidecache.errors import SidecacheError
from sidecache.v1 import cache_pb2


class Judge(Protocol):
    """Compares answers. The fleet's own model may sit behind this as well as arithmetic."""

    async def same(self, one: str, other: str) -> bool | None:
        """Whether two answers say the same; None: this judge cannot tell."""
        ...


class AnswerJudge:
    """Equal texts say the same; of others, the cosine of their vectors decides.

    Args:
        queue: embeds answers, behind the prompts that callers wait for.
        min_similarity: cosine from which on two answers say the same.
        max_chars: longer answers are compared by their beginnings. A model answers
            first and elaborates later; a difference beyond goes unseen, and embedding
            all of a long answer would hold up the lookups behind it.
    """

    def __init__(self, queue: EmbeddingQueue, min_similarity: float, max_chars: int) -> None:
        self._queue = queue
        self._min_similarity = min_similarity
        self._max_chars = max_chars

    async def same(self, one: str, other: str) -> bool | None:
        if normalized(one) == normalized(other):
            return True
        try:
            vectors = [await self._vector(answer) for answer in (one, other)]
        except SidecacheError:
            return None  # beyond the embedder's window, or it is busy: no observation
        return float(vectors[0] @ vectors[1]) >= self._min_similarity

    async def _vector(self, answer: str) -> Vector:
        return await self._queue.vector(answer[: self._max_chars], in_background=True)


def normalized(answer: str) -> str:
    """The answer without case, spacing and closing punctuation."""
    return " ".join(answer.casefold().split()).rstrip(".!?")


def answer_text(answer: cache_pb2.Answer) -> str:
    """What an answer says: the text of its choices, in their order."""
    deltas = sorted(answer.deltas, key=lambda delta: (delta.choice, delta.offset))
    return "".join(delta.text for delta in deltas)
