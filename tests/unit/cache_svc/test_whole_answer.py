"""Only whole answers are whole."""

import re

import pytest

from cache_svc.whole_answer import why_not_whole
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.cache import answer_of

STOP = pb.Finished(choice=0, reason=pb.FINISH_REASON_STOP)


def _answer(*deltas: pb.Delta, finished: list[pb.Finished] | None = None) -> cache_pb2.Answer:
    return cache_pb2.Answer(deltas=deltas, finished=[STOP] if finished is None else finished)


@pytest.mark.parametrize(
    "answer",
    [
        answer_of("a", "b"),
        answer_of(),
        _answer(finished=[pb.Finished(choice=0, reason=pb.FINISH_REASON_LENGTH)]),
        _answer(
            pb.Delta(choice=1, offset=0, token_ids=[1, 2]),
            pb.Delta(choice=0, offset=0, token_ids=[3]),
            pb.Delta(choice=1, offset=2, text="tail"),
            finished=[pb.Finished(choice=1, reason=pb.FINISH_REASON_STOP), STOP],
        ),
    ],
)
def test_whole(answer: cache_pb2.Answer) -> None:
    """Finished choices with contiguous deltas are whole, in any interleaving."""
    assert why_not_whole(answer) == ""


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (_answer(finished=[]), "not finished"),
        (_answer(finished=[pb.Finished(choice=0)]), "UNSPECIFIED"),
        (_answer(finished=[pb.Finished(reason=pb.FINISH_REASON_FILTERED)]), "FILTERED"),
        (_answer(finished=[pb.Finished(reason=77)]), "UNSPECIFIED"),  # type: ignore[arg-type]
        (_answer(finished=[STOP, STOP]), r"\[0, 0\]"),
        (_answer(finished=[pb.Finished(choice=1, reason=pb.FINISH_REASON_STOP)]), r"\[1\]"),
        (_answer(pb.Delta(offset=1, token_ids=[1])), "offset 1, not at 0"),
        (
            _answer(pb.Delta(token_ids=[1, 2]), pb.Delta(offset=1, token_ids=[3])),
            "offset 1, not at 2",
        ),
        (_answer(pb.Delta(choice=1, token_ids=[1])), "choice 1, which never finished"),
    ],
)
def test_not_whole(answer: cache_pb2.Answer, problem: str) -> None:
    """Unfinished, filtered, gapped, overlapping and stray answers are told apart."""
    assert re.search(problem, why_not_whole(answer))
