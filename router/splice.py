"""A stream read from its beginning by who has a part of it: only the rest is passed on."""

from router.tape import Tape
from sidecache.errors import BrokenInvariant
from sidecache.v1 import inference_pb2 as pb


class Splice:
    """What comes after the tokens that a tape has already, of the same stream with one choice.

    Messages need not end where the tape does: tokens are cut by their number, text by what
    of it was delivered. So nothing of the tape comes twice, and a stream that says something
    else in the part that is known is found out.

    Args:
        tape: what the reader has.
    """

    def __init__(self, tape: Tape) -> None:
        self._has_started = tape.started
        self._ids = list(tape.delivered_ids)
        self._text = tape.delivered_text
        # Of the stream, as far as it has been read.
        self._read_ids = 0
        self._read_text = ""

    def rest(self, event: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """What the reader does not have yet of a message; None: he has it all.

        Raises:
            BrokenInvariant: this is another stream.
        """
        if not self._has_started:
            return event
        rest = pb.GenerateResponse()
        rest.CopyFrom(event)
        rest.ClearField("started")
        if rest.HasField("migrated") and rest.migrated.offset <= len(self._ids):
            rest.ClearField("migrated")
        if rest.HasField("delta") and not self._is_past:
            self._cut(rest)
        return rest if rest.ListFields() else None

    @property
    def _is_past(self) -> bool:
        """Whether everything from here on is new."""
        return self._read_ids >= len(self._ids) and len(self._read_text) >= len(self._text)

    def _cut(self, event: pb.GenerateResponse) -> None:
        delta = event.delta
        if delta.choice or delta.offset != self._read_ids:
            raise BrokenInvariant(
                f"the other stream goes on at token {delta.offset}, not {self._read_ids}"
            )
        known = self._ids[self._read_ids : self._read_ids + len(delta.token_ids)]
        text = self._read_text + delta.text
        if list(delta.token_ids[: len(known)]) != known or not _agree(text, self._text):
            raise BrokenInvariant("the other stream says something else")
        sent_chars = max(len(self._read_text), len(self._text))
        self._read_ids += len(delta.token_ids)
        self._read_text = text
        new_text = text[sent_chars:]
        if len(known) == len(delta.token_ids) and not new_text:
            event.ClearField("delta")
            return
        # Text may be ahead of the tokens it was read with before.
        delta.offset = max(delta.offset + len(known), len(self._ids))
        del delta.token_ids[: len(known)]
        del delta.logprobs[: len(known)]
        delta.text = new_text


def _agree(one: str, other: str) -> bool:
    """Whether the shorter text is how the longer one begins."""
    return one.startswith(other) or other.startswith(one)
