"""What a stream has sent so far: checked as it passes, kept if it may be stored."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from router.ticket import Ticket
from sidecache.errors import BrokenInvariant
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb

# A stored answer is replayed in pieces of about this many tokens at most: a message costs
# far more than its tokens, and all of them are there at once.
_PIECE_TOKENS = 256

# Fixed part of a delta's size on the wire, and bytes of one token id at most.
_DELTA_BYTES = 16
_TOKEN_BYTES = 5

# Answers that were cut off by nobody: only these are whole.
_WHOLE = frozenset((pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH))


class Tape:
    """The events of one stream, in order.

    Attributes:
        started: whether the client knows who answers.
        tokens: tokens sent, all choices together.
        first_token_at: the clock's time of the first of them.
        delivered_ids: those of choice 0; how the stream goes on elsewhere.
        is_inexact: a part of it may differ from what one worker would have said.
        is_relayed: another router generates it now.
    """

    def __init__(self, ticket: Ticket, max_answer_bytes: int, clock: Callable[[], float]) -> None:
        self._choices = ticket.request.n
        self._offsets = [0] * self._choices
        self._records = ticket.may_store
        self._max_bytes = max_answer_bytes
        self._bytes = 0
        self._deltas: list[pb.Delta] = []
        self._finished: list[pb.Finished] = []
        self._clock = clock
        self._texts: list[str] = []
        self.started = False
        self.tokens = 0
        self.delivered_ids: list[int] = []
        self.is_inexact = False
        self.is_relayed = False
        self.first_token_at: float | None = None

    def take(self, delta: pb.Delta) -> None:
        """Check that a delta goes on where its choice stands, and keep it.

        Raises:
            BrokenInvariant: the worker lost, repeated or reordered tokens.
        """
        choice = delta.choice
        if choice >= self._choices or delta.offset != self._offsets[choice]:
            expected = self._offsets[choice] if choice < self._choices else "no such choice"
            raise BrokenInvariant(
                f"the worker sent offset {delta.offset} of choice {choice}; expected {expected}"
            )
        count = len(delta.token_ids)
        self._offsets[choice] += count
        if self.first_token_at is None and count:
            self.first_token_at = self._clock()
        self.tokens += count
        if self._choices == 1:
            self.delivered_ids += delta.token_ids
            self._texts.append(delta.text)
        if self._records:
            self._record(delta, count)

    def finish(self, finished: pb.Finished) -> None:
        """Keep the end of a choice."""
        self._finished.append(finished)

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended."""
        return len(self._finished) == self._choices

    @property
    def delivered_text(self) -> str:
        """Text sent so far, of a stream with one choice."""
        return "".join(self._texts)

    @property
    def finished(self) -> Sequence[pb.Finished]:
        """The ends of the choices, in the order they came."""
        return self._finished

    @property
    def is_storable(self) -> bool:
        """Whether an answer that has ended is whole, exact, and not too large to store."""
        is_whole = all(end.reason in _WHOLE for end in self._finished)
        return self._records and not self.is_inexact and is_whole

    def answer(self, worker: str, revision: str) -> cache_pb2.Answer | None:
        """The whole answer, or None where it may not be stored."""
        if not self.is_storable:
            return None
        return cache_pb2.Answer(
            deltas=_joined(self._deltas),
            finished=[_without_cached(end) for end in self._finished],
            model_revision=revision,
            worker=worker,
        )

    def _record(self, delta: pb.Delta, count: int) -> None:
        self._bytes += _DELTA_BYTES + _TOKEN_BYTES * count + len(delta.text)
        if self._bytes > self._max_bytes:
            # Too large to store: let go of it at once rather than at the end.
            self._records = False
            self._deltas.clear()
            return
        self._deltas.append(delta)


def _joined(deltas: Iterable[pb.Delta]) -> Iterator[pb.Delta]:
    """The same tokens in few pieces; the deltas themselves belong to messages that others read."""
    piece: pb.Delta | None = None
    for delta in deltas:
        if piece is None or piece.choice != delta.choice or len(piece.token_ids) >= _PIECE_TOKENS:
            if piece is not None:
                yield piece
            piece = pb.Delta()
            piece.CopyFrom(delta)
            continue
        piece.token_ids.extend(delta.token_ids)
        piece.text += delta.text
        piece.logprobs.extend(delta.logprobs)
    if piece is not None:
        yield piece


def _without_cached(end: pb.Finished) -> pb.Finished:
    """The end as it is stored: a replay reads nothing from a KV cache."""
    if not end.usage.HasField("cached_prompt_tokens"):
        return end
    stored = pb.Finished()
    stored.CopyFrom(end)
    stored.usage.ClearField("cached_prompt_tokens")
    stored.usage.ClearField("cached_prompt_tokens_estimated")
    return stored
