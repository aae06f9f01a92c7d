"""What a request's end says of its variant."""

import asyncio

import grpc
import pytest

from router.splits.results import Outcome, Results, outcome_of
from sidecache.errors import (
    BrokenInvariant,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotCached,
    Overloaded,
    QuotaExceeded,
    StreamInterrupted,
)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (EngineFailed("x"), "error"),
        (StreamInterrupted("x"), "error"),
        (BrokenInvariant("x"), "error"),
        (DeadlineExceeded("x"), "error"),
        (Overloaded("x", retry_after_s=1), "error"),
        (ZeroDivisionError(), "error"),
        (QuotaExceeded("x", subject="tenant:acme", retry_after_s=1), "refused"),
        (InvalidRequest("x"), "refused"),
        (NotCached("x"), "refused"),
        (asyncio.CancelledError(), "abandoned"),
        (grpc.aio.InternalError("a write to a caller that is gone"), "abandoned"),
        (StreamInterrupted("x", why="reader_stalled"), "abandoned"),
        (StreamInterrupted("x", why="reader_behind"), "abandoned"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_whose_fault_an_end_is(error: BaseException | None, outcome: Outcome) -> None:
    """The variant's, the caller's, or nobody's."""
    assert outcome_of(error, from_engine=True) == outcome


@pytest.mark.parametrize("error", [None, EngineFailed("x"), DeadlineExceeded("x")])
def test_an_answer_from_the_cache_says_nothing_of_a_variant(error: BaseException | None) -> None:
    """Neither where it was whole, nor where its stream broke."""
    assert outcome_of(error, from_engine=False) == "cached"


def test_figures_are_of_those_that_have_them() -> None:
    """Rates of whole answers, first tokens of failed ones too, errors of the judged only."""
    results = Results()
    results.add("ok", 1.0, 10.0)
    results.add("error", 3.0, 99.0)
    results.add("cached", 50.0, 99.0)
    results.add("abandoned", 50.0, 99.0)
    results.add("refused", None, 0.0)
    assert results.judged == 2
    assert (results.first_token_s.count, results.first_token_s.mean) == (2, 2.0)
    assert (results.tokens_per_s.count, results.tokens_per_s.mean) == (1, 10.0)
    assert results.error_rate().estimate == 0.5
