"""The order that a stream of events must keep, checked event by event."""

from sidecache.errors import BrokenInvariant
from sidecache.stream_events import kind_of
from sidecache.v1 import inference_pb2 as pb


class StreamOrder:
    """Raises on the first event that loses, repeats or reorders a token.

    `started` comes first and once. Each choice's offsets count its tokens
    without a gap or a repeat, across migrations too, and end with one `finished`.

    Args:
        num_choices: how many choices the request asked for.
        first_offset: where a stream that is gone on with begins.
    """

    def __init__(self, num_choices: int = 1, first_offset: int = 0) -> None:
        self.started = False
        self._first_offset = first_offset
        self._next_offset = [first_offset] * num_choices
        self._finished = [False] * num_choices

    @property
    def num_tokens(self) -> int:
        """Tokens received so far, all choices together."""
        return sum(self._next_offset) - self._first_offset * len(self._next_offset)

    @property
    def next_offset(self) -> int:
        """Of the first choice."""
        return self._next_offset[0]

    def check(self, event: pb.GenerateResponse) -> None:
        """Accept the next event.

        Raises:
            BrokenInvariant: it cannot follow what came before.
        """
        match kind_of(event):
            case "delta":
                self._check_delta(event.delta)
            case "started":
                if self.started:
                    raise BrokenInvariant("the stream started twice")
                self.started = True
            case "finished":
                self._open_choice(event.finished.choice, "finished")
                self._finished[event.finished.choice] = True
            case "migrated":
                self._check_migrated(event.migrated)
            case _:
                # Progress, or an event that a newer server knows.
                pass

    def check_end(self) -> None:
        """Accept the end of the stream, with status OK.

        Raises:
            BrokenInvariant: a choice never finished.
        """
        for choice, finished in enumerate(self._finished):
            if not finished:
                raise BrokenInvariant(
                    f"the stream ended with OK, but choice {choice} is unfinished after "
                    f"{self._next_offset[choice]} tokens"
                )

    def _check_delta(self, delta: pb.Delta) -> None:
        self._open_choice(delta.choice, "got a delta")
        expected = self._next_offset[delta.choice]
        if delta.offset != expected:
            fault = "repeats tokens" if delta.offset < expected else "lost tokens"
            raise BrokenInvariant(
                f"the stream {fault}: choice {delta.choice} is at offset {expected}, "
                f"the next delta at {delta.offset}"
            )
        self._next_offset[delta.choice] = expected + len(delta.token_ids)

    def _check_migrated(self, migrated: pb.Migrated) -> None:
        if migrated.offset != self._next_offset[0]:
            raise BrokenInvariant(
                f"the stream migrated at offset {migrated.offset}, but "
                f"{self._next_offset[0]} tokens have arrived"
            )

    def _open_choice(self, choice: int, event: str) -> None:
        if not self.started:
            raise BrokenInvariant(f"choice {choice} {event} before the stream started")
        if choice >= len(self._finished):
            raise BrokenInvariant(
                f"choice {choice} {event}, but {len(self._finished)} were asked for"
            )
        if self._finished[choice]:
            raise BrokenInvariant(f"choice {choice} {event} after it finished")
