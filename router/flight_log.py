"""The messages of one generation so far, to be read from any position."""

from typing import Final

from sidecache.errors import InvalidRequest
from sidecache.v1 import inference_pb2 as pb

# How many messages are taken between two looks at how many bytes they are.
_UNSIZED: Final = 32
# What a reader who is behind gets in one message. A message costs far more than its tokens.
_PIECE_TOKENS: Final = 256


class FlightLog:
    """Messages in order, the oldest forgotten when there are too many bytes of them.

    Positions count messages from the first one that ever was.

    Args:
        max_bytes: the bound; a few messages more may be there for a moment.

    Attributes:
        trimmed: the position of the oldest message that is still there.
    """

    __slots__ = ("_max_bytes", "_messages", "_size", "_sized", "trimmed")

    def __init__(self, max_bytes: int) -> None:
        self._messages: list[pb.GenerateResponse] = []
        self._max_bytes = max_bytes
        self._size = 0
        # How many messages `_size` counts, from the oldest.
        self._sized = 0
        self.trimmed = 0

    @property
    def size(self) -> int:
        """Bytes kept."""
        self._size += sum(message.ByteSize() for message in self._messages[self._sized :])
        self._sized = len(self._messages)
        return self._size

    @property
    def end(self) -> int:
        """The position after the newest message."""
        return self.trimmed + len(self._messages)

    def append(self, message: pb.GenerateResponse) -> None:
        """Keep one more message; it must not change again."""
        messages = self._messages
        messages.append(message)
        if len(messages) - self._sized >= _UNSIZED and self.size > self._max_bytes:
            self._trim()

    def take(self, position: int) -> tuple[int, pb.GenerateResponse]:
        """The message at a position, with what may follow it in the same message.

        Returns:
            The position to go on from, and what to send.
        """
        messages, at = self._messages, position - self.trimmed
        message, at = messages[at], at + 1
        if at == len(messages) or not _may_follow(message, messages[at]):
            return self.trimmed + at, message
        merged = pb.GenerateResponse()
        merged.CopyFrom(message)
        while (
            at < len(messages)
            and _may_follow(merged, messages[at])
            and len(merged.delta.token_ids) < _PIECE_TOKENS
        ):
            _add(merged, messages[at])
            at += 1
        return self.trimmed + at, merged

    def started(self) -> pb.Started | None:
        """What the stream began with, if it has not been forgotten."""
        for message in self._messages[:2]:
            if message.HasField("started"):
                return message.started
        return None

    def position_of(self, offset: int, tokens: int) -> int:
        """The message with the token that follows this many, of a stream with one choice.

        Raises:
            InvalidRequest: there are not so many yet, or no message ended there.
        """
        if offset > tokens:
            raise InvalidRequest(f"{offset}; the stream has {tokens} tokens so far", field="offset")
        for at, message in enumerate(self._messages):
            if not message.HasField("delta"):
                continue
            if message.delta.offset == offset:
                return self.trimmed + at
            if message.delta.offset > offset:
                raise _not_there(offset, message.delta.offset)
        if offset < tokens:
            raise _not_there(offset, tokens)
        return self._after_tokens()

    def _after_tokens(self) -> int:
        """The caller has every token so far; an end without tokens may be new to him."""
        last = self._messages[-1] if self._messages else None
        if last is not None and last.HasField("finished") and not last.HasField("delta"):
            return self.end - 1
        return self.end

    def _trim(self) -> None:
        """Forget the oldest; a quarter at once, since a list moves all that stay."""
        messages, gone = self._messages, 0
        while gone < len(messages) and self._size > self._max_bytes * 3 // 4:
            self._size -= messages[gone].ByteSize()
            gone += 1
        del messages[:gone]
        self._sized -= gone
        self.trimmed += gone


def _not_there(offset: int, end: int) -> InvalidRequest:
    return InvalidRequest(f"{offset}; no message ended there, only at {end}", field="offset")


def _may_follow(before: pb.GenerateResponse, message: pb.GenerateResponse) -> bool:
    """Whether both read the same in one message: events of it are read in a fixed order."""
    if before.HasField("finished"):
        return False
    if message.HasField("started") or message.HasField("migrated") or message.HasField("progress"):
        return False
    both_speak = before.HasField("delta") and message.HasField("delta")
    return not both_speak or message.delta.choice == before.delta.choice


def _add(merged: pb.GenerateResponse, message: pb.GenerateResponse) -> None:
    if not merged.HasField("delta") and message.HasField("delta"):
        merged.delta.CopyFrom(message.delta)
    elif message.HasField("delta"):
        delta = merged.delta
        delta.token_ids.extend(message.delta.token_ids)
        delta.text += message.delta.text
        delta.logprobs.extend(message.delta.logprobs)
    if message.HasField("finished"):
        merged.finished.CopyFrom(message.finished)
