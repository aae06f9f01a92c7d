"""One choice of one stream, held against the answer it must be."""

from collections.abc import Iterator

from chaos.reference import Answer
from chaos.violations import (
    AfterTerminal,
    Lost,
    ManyTerminals,
    Overlong,
    Reordered,
    Repeated,
    Violation,
    WrongReason,
    WrongText,
    WrongToken,
    WrongUsage,
)
from sidecache.v1 import inference_pb2 as pb

_EXCERPT = 24


class ChoiceCheck:
    """Takes a choice's events in order and tells what is wrong with each.

    Args:
        call: number of the call.
        index: of the choice.
        answer: what it must be.
        prompt_tokens: what usage must say; None: not known.

    Attributes:
        tokens: what came, by position.
        finished: its end, once it came.
    """

    def __init__(self, call: int, index: int, answer: Answer, prompt_tokens: int | None) -> None:
        self.index = index
        self.answer = answer
        self.tokens: dict[int, int] = {}
        self.finished: pb.Finished | None = None
        self.next_offset = 0
        self._call = call
        self._prompt_tokens = prompt_tokens
        self._text = ""
        self._text_is_wrong = False

    def take(self, delta: pb.Delta) -> Iterator[Violation]:
        """The next delta, in the order of arrival."""
        if self.finished is not None:
            yield AfterTerminal(self._call, "delta", f"finished of choice {self.index}")
        for position, token in enumerate(delta.token_ids, delta.offset):
            yield from self._place(position, token)
        if not delta.token_ids and delta.offset != self.next_offset:
            yield Lost(self._call, self.index, self.next_offset, delta.offset - 1)
        self._text += delta.text
        yield from self._check_text()

    def finish(self, finished: pb.Finished) -> Iterator[Violation]:
        """Its end."""
        if self.finished is not None:
            yield ManyTerminals(self._call, f"choice {self.index} finished twice")
            return
        self.finished = finished
        if finished.reason != self.answer.reason:
            yield WrongReason(
                self._call,
                self.index,
                pb.FinishReason.Name(self.answer.reason),
                pb.FinishReason.Name(finished.reason),
            )
        yield from self._check_usage(finished.usage)

    def close(self) -> Iterator[Violation]:
        """What only the end of the log shows."""
        expected = len(self.answer.token_ids)
        last = max(self.next_offset, expected) if self.finished is not None else self.next_offset
        yield from self._holes(last)
        if self.next_offset > expected:
            yield Overlong(self._call, self.index, expected, self.next_offset)
        if self.finished is not None and self._text != self.answer.text:
            yield from self._wrong_text()

    def _place(self, position: int, token: int) -> Iterator[Violation]:
        if position in self.tokens:
            yield Repeated(self._call, self.index, position)
            return
        if position < self.next_offset:
            yield Reordered(self._call, self.index, position)
        self.tokens[position] = token
        self.next_offset = max(self.next_offset, position + 1)
        ids = self.answer.token_ids
        if position < len(ids) and token != ids[position]:
            yield WrongToken(self._call, self.index, position, ids[position], token)

    def _holes(self, end: int) -> Iterator[Violation]:
        """Runs of positions before ``end`` at which no token ever came."""
        expected = 0
        for position in (*sorted(self.tokens), end):
            if position > expected:
                yield Lost(self._call, self.index, expected, position - 1)
            expected = max(expected, position + 1)

    def _check_text(self) -> Iterator[Violation]:
        """Text may lag behind the tokens; it may not differ, nor run ahead."""
        delivered = min(self.next_offset, len(self.answer.readable))
        readable = self.answer.readable[delivered - 1] if delivered else 0
        if len(self._text) > readable or not self.answer.text.startswith(self._text):
            yield from self._wrong_text()

    def _wrong_text(self) -> Iterator[Violation]:
        """Once a choice: all that follows is wrong too."""
        if self._text_is_wrong:
            return
        self._text_is_wrong = True
        at = _first_difference(self.answer.text, self._text)
        yield WrongText(
            self._call,
            self.index,
            at,
            self.answer.text[at : at + _EXCERPT],
            self._text[at : at + _EXCERPT],
        )

    def _check_usage(self, usage: pb.Usage) -> Iterator[Violation]:
        if usage.completion_tokens != len(self.tokens):
            yield WrongUsage(
                self._call,
                self.index,
                "completion_tokens",
                len(self.tokens),
                usage.completion_tokens,
            )
        expected = self._prompt_tokens
        if expected is not None and usage.prompt_tokens != expected:
            yield WrongUsage(self._call, self.index, "prompt_tokens", expected, usage.prompt_tokens)
        if usage.cached_prompt_tokens > usage.prompt_tokens:
            yield WrongUsage(
                self._call,
                self.index,
                "cached_prompt_tokens",
                usage.prompt_tokens,
                usage.cached_prompt_tokens,
            )


def _first_difference(left: str, right: str) -> int:
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return min(len(left), len(right))
