"""Only whole answers are stored: what makes an answer whole."""

from sidecache.v1 import cache_pb2, inference_pb2

# Ends that are the answer's own. A filtered one was cut by a rule that may change.
_WHOLE = frozenset({inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH})


def why_not_whole(answer: cache_pb2.Answer) -> str:
    """What is missing from an answer, or "" when it is whole.

    Whole means: choices 0 to n-1 each finished once, with STOP or LENGTH, and the
    deltas of each choice follow one another without gap or overlap from offset 0.
    An answer of no tokens at all is whole when it is finished.
    """
    return _why_not_finished(answer) or _why_not_contiguous(answer)


def _why_not_finished(answer: cache_pb2.Answer) -> str:
    if not answer.finished:
        return "the answer is not finished"
    choices = sorted(finished.choice for finished in answer.finished)
    if choices != list(range(len(choices))):
        return f"finished choices are {choices}, not each of 0 to n-1 once"
    for finished in answer.finished:
        if finished.reason not in _WHOLE:
            # An open enum: a newer peer may send a number this build has no name for.
            name = inference_pb2.FinishReason.keys()[0]
            if finished.reason in inference_pb2.FinishReason.values():
                name = inference_pb2.FinishReason.Name(finished.reason)
            return f"choice {finished.choice} ended with {name}; only STOP and LENGTH are whole"
    return ""


def _why_not_contiguous(answer: cache_pb2.Answer) -> str:
    expected = [0] * len(answer.finished)
    for delta in answer.deltas:
        if delta.choice >= len(expected):
            return f"a delta of choice {delta.choice}, which never finished"
        if delta.offset != expected[delta.choice]:
            return (
                f"choice {delta.choice} goes on at offset {delta.offset}, "
                f"not at {expected[delta.choice]}"
            )
        expected[delta.choice] += len(delta.token_ids)
    return ""
