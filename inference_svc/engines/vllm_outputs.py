"""What one sequence of vLLM has given and nobody has taken yet.

vLLM keeps a collector for each sequence; outputs that nobody takes are merged in it. Whoever
waits at it is woken by the first output, and by none after that, not even the last one:
so it is listened to here.
"""

from collections.abc import Callable
from typing import Any

from inference_svc.engine import FinishReason, TokenLogprob
from inference_svc.engines.sequence_stream import Step
from sidecache.errors import EngineFailed


class VllmOutputs:
    """One sequence's collector.

    Args:
        engine: the AsyncLLM it belongs to.
        collector: a RequestOutputCollector (0.25.1 to 0.32).
        tell: called with each output that comes; with True when it is the last one, or an error.
    """

    def __init__(self, engine: Any, collector: Any, tell: Callable[[bool], None]) -> None:
        self._engine = engine
        self._collector = collector
        self._tell = tell
        self._ended = False
        self._keep = collector.put
        collector.put = self._put
        if collector.output is not None:  # it came before we listened
            self._note(collector.output)

    def take(self) -> Any | None:
        """Everything that has come, as one output; None if nothing has.

        Raises:
            Exception: whatever ended the sequence.
        """
        return self._collector.get_nowait()

    async def abort(self) -> None:
        """Leave the batch, unless the engine has ended the sequence."""
        if not self._ended:
            await self._engine.abort(self._collector.request_id, internal=True)

    def _put(self, output: Any) -> None:
        self._keep(output)
        self._note(output)

    def _note(self, output: Any) -> None:
        last = isinstance(output, Exception) or bool(output.finished)
        if last and not self._ended:
            self._ended = True
            # Gives the collector its own method back, and so breaks the circle.
            del self._collector.put
        self._tell(last)


def read_step(output: Any, wanted: int | None) -> Step:
    """What one of vLLM's outputs says; ``wanted`` other log-probabilities at most.

    Raises:
        EngineFailed: vLLM gave the sequence up for a reason of its own.
    """
    completion = output.outputs[0]
    return Step(
        [int(each) for each in completion.token_ids],
        _logprobs(completion, wanted),
        _finish_reason(completion.finish_reason),
        output.num_cached_tokens,
    )


def _finish_reason(reason: str | None) -> FinishReason | None:
    """Why a sequence ended, or None while it runs."""
    match reason:
        case None:
            return None
        case "stop":
            return FinishReason.STOP
        case "length":
            return FinishReason.LENGTH
        case _:
            raise EngineFailed(f"the engine ended the sequence by itself: {reason}")


def _logprobs(completion: Any, wanted: int | None) -> list[TokenLogprob]:
    if wanted is None or completion.logprobs is None:
        return []
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return [_token_logprob(int(token_id), step, wanted) for token_id, step in pairs]


def _token_logprob(chosen: int, step: dict[int, Any], wanted: int) -> TokenLogprob:
    others = sorted(
        ((token_id, float(each.logprob)) for token_id, each in step.items() if token_id != chosen),
        key=lambda pair: -pair[1],
    )
    # Rounding in the engine may leave a hair above the probability of 1.
    return TokenLogprob(min(0.0, float(step[chosen].logprob)), tuple(others[:wanted]))
