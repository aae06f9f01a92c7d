"""The events of a stream, as the contract writes them."""

from inference_svc.engine import FinishReason, ModelFacts, TokenDelta
from sidecache.v1 import inference_pb2 as pb

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def started(request_id: str, worker: str, facts: ModelFacts, trace_id: str) -> pb.GenerateResponse:
    """Who answers. It is sent before the prefill, so cached prompt tokens are not known yet."""
    return pb.GenerateResponse(
        started=pb.Started(
            request_id=request_id,
            source=pb.SOURCE_ENGINE,
            worker=worker,
            trace_id=trace_id,
            model=facts.name,
            model_revision=facts.revision,
        )
    )


def delta(tokens: TokenDelta) -> pb.Delta:
    """Tokens of one choice."""
    event = pb.Delta(
        choice=tokens.choice, offset=tokens.offset, token_ids=tokens.token_ids, text=tokens.text
    )
    for logprob in tokens.logprobs:
        event.logprobs.add(
            logprob=logprob.logprob,
            top=[pb.TopLogprob(token_id=i, logprob=value) for i, value in logprob.top],
        )
    return event


def progress() -> pb.GenerateResponse:
    """A heartbeat; how much of the prompt is done is not known."""
    return pb.GenerateResponse(progress=pb.Progress())


def finished(
    last: TokenDelta,
    reason: FinishReason,
    *,
    prompt_tokens: int,
    cached_prompt_tokens: int | None,
    cached_is_estimate: bool,
) -> pb.Finished:
    """The end of the choice whose last tokens these are.

    Args:
        last: the choice's last delta.
        reason: why it was the last.
        prompt_tokens: of the whole prompt.
        cached_prompt_tokens: of ``prompt_tokens``, those that were in the KV cache when the
            request began; the same for each of its choices. None: the engine does not say.
        cached_is_estimate: they are modelled rather than reported.
    """
    return pb.Finished(
        choice=last.choice,
        reason=_REASONS[reason],
        usage=pb.Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=last.offset + len(last.token_ids),
            cached_prompt_tokens=cached_prompt_tokens,
            cached_prompt_tokens_estimated=cached_prompt_tokens is not None and cached_is_estimate,
        ),
    )
