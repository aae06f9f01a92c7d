"""One choice's way from token ids to deltas: text, offsets, stop strings, resuming."""

from collections.abc import Collection, Sequence
from typing import Protocol

from inference_svc.engine import Continuation, FinishReason, TokenDelta, TokenLogprob
from inference_svc.stop_strings import StopStrings
from sidecache.errors import InvalidRequest


class TextDecoder(Protocol):
    """Turns ids into text, keeping back what is not readable yet."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids make readable."""

    def flush(self) -> str:
        """What is left when nothing follows."""


class Choice:
    """Everything about one choice that outlives a token.

    Args:
        index: of the choice in its request.
        decoder: a fresh one, for this choice alone.
        stop: strings that end the text.
    """

    def __init__(self, index: int, decoder: TextDecoder, stop: Sequence[str]) -> None:
        self.index = index
        self.num_tokens = 0
        self.finished: FinishReason | None = None
        self._decoder = decoder
        self._stop = StopStrings(stop)
        self._token_wise = bool(stop)
        # Readable, but not yet delivered, when the choice was taken over.
        self._backlog = ""

    def resume(self, delivered: Continuation) -> None:
        """Take over after these ids and this text.

        The ids may already hold a stop string; then :attr:`finished` is set, and
        the next push only delivers what text is left.

        Raises:
            InvalidRequest: the text is not what these ids say.
        """
        readable, _ = self._read(delivered.token_ids)
        if not readable.startswith(delivered.text):
            raise InvalidRequest(
                f"is not the text of the {len(delivered.token_ids)} ids before it",
                field="continuation.delivered_text",
            )
        self.num_tokens = len(delivered.token_ids)
        self._backlog = readable[len(delivered.text) :]

    def take_over(
        self, delivered: Continuation, max_tokens: int, end_token_ids: Collection[int]
    ) -> TokenDelta | None:
        """As :meth:`resume`; the last delta if the choice was complete already.

        Args:
            delivered: what the choice has given elsewhere.
            max_tokens: of the whole choice.
            end_token_ids: the model's ends of sequence.
        """
        self.resume(delivered)
        ended = None
        if delivered.token_ids and delivered.token_ids[-1] in end_token_ids:
            ended = FinishReason.STOP
        elif len(delivered.token_ids) >= max_tokens:
            ended = FinishReason.LENGTH
        if ended is None and self.finished is None:
            return None
        return self.push((), ended=ended)

    def push(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
        ended: FinishReason | None = None,
    ) -> TokenDelta:
        """Take the next tokens; ``ended`` if the engine says they are the last.

        The ids that complete a stop string are delivered, those after it are
        not. Check :attr:`finished` afterwards.
        """
        text, used = self._read(token_ids) if self.finished is None else ("", 0)
        if self.finished is None and ended is not None:
            self.finished = ended
            text += self._end()
        delta = TokenDelta(
            self.index,
            self.num_tokens,
            tuple(token_ids[:used]),
            self._backlog + text,
            tuple(logprobs[:used]),
            self.finished,
        )
        self._backlog = ""
        self.num_tokens += used
        return delta

    def _read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Their text, and how many of them count: up to a stop string."""
        if not self._token_wise:
            return self._decoder.push(token_ids), len(token_ids)
        text = ""
        for used, token_id in enumerate(token_ids, 1):
            passed, stopped = self._stop.push(self._decoder.push((token_id,)))
            text += passed
            if stopped:
                self.finished = FinishReason.STOP
                return text, used
        return text, len(token_ids)

    def _end(self) -> str:
        """The rest of the text. It may still complete a stop string, whose reason wins."""
        passed, stopped = self._stop.push(self._decoder.flush())
        if stopped:
            self.finished = FinishReason.STOP
            return passed
        return passed + self._stop.flush()
