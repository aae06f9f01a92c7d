"""What became of a variant's requests: counts and means, since the last reset."""

from typing import Literal

from observability.interceptors.server import is_client_gone
from router.splits.estimates import Interval, Mean, wilson
from sidecache.errors import (
    BrokenInvariant,
    DeadlineExceeded,
    Overloaded,
    QuotaExceeded,
    SidecacheError,
    StreamInterrupted,
    Unavailable,
)

Outcome = Literal["ok", "error", "cached", "abandoned", "refused"]

_AT_FAULT = (Unavailable, StreamInterrupted, BrokenInvariant, DeadlineExceeded, Overloaded)

# Why a stream was cut off, where it was its reader's doing.
_READERS = frozenset(("reader_stalled", "reader_behind"))


def outcome_of(error: BaseException | None, *, from_engine: bool) -> Outcome:
    """What a request's end says of its variant.

    ``abandoned``: its caller left, or took nothing of it. ``refused``: the request was at
    fault, or its tenant's quota. Neither speaks for or against the variant, nor does an answer
    from the cache.
    """
    if error is None:
        return "ok" if from_engine else "cached"
    if is_client_gone(error) or (isinstance(error, StreamInterrupted) and error.why in _READERS):
        return "abandoned"
    if isinstance(error, QuotaExceeded):
        return "refused"
    if isinstance(error, _AT_FAULT):
        return "error" if from_engine else "cached"
    return "refused" if isinstance(error, SidecacheError) else "error"


class Results:
    """Of one variant or shadow."""

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = dict.fromkeys(
            ("ok", "error", "cached", "abandoned", "refused"), 0
        )
        self.first_token_s = Mean()
        self.tokens_per_s = Mean()

    @property
    def judged(self) -> int:
        """Requests that say something about the variant."""
        return self.outcomes["ok"] + self.outcomes["error"]

    def add(self, outcome: Outcome, first_token_s: float | None, tokens_per_s: float) -> None:
        """Take in one request's end."""
        self.outcomes[outcome] += 1
        if outcome in ("ok", "error") and first_token_s is not None:
            self.first_token_s.add(first_token_s)
        if outcome == "ok" and tokens_per_s:
            self.tokens_per_s.add(tokens_per_s)

    def error_rate(self) -> Interval:
        """The share of the judged requests that failed."""
        return wilson(self.outcomes["error"], self.judged)
