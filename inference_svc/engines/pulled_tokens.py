"""What one sequence has given and nobody has taken: cut into deltas when a message is due."""

from collections import deque
from dataclasses import replace

from inference_svc.choice import Choice
from inference_svc.coalesce import merged
from inference_svc.engine import TokenDelta
from inference_svc.engines.sequence_stream import Step


class UnreadTokens:
    """Tokens that become text only when they are cut: between two messages they cost nothing."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._steps: deque[Step] = deque()

    def __bool__(self) -> bool:
        return bool(self._steps)

    def put(self, step: Step) -> None:
        """What the engine has given next."""
        self._steps.append(step)

    def cut(self, max_tokens: int) -> TokenDelta:
        """The first tokens of what there is."""
        step = self._steps.popleft()
        if len(step.token_ids) > max_tokens:
            ids, logprobs = step.token_ids, step.logprobs
            rest = replace(step, token_ids=ids[max_tokens:], logprobs=logprobs[max_tokens:])
            self._steps.appendleft(rest)
            step = replace(
                step, token_ids=ids[:max_tokens], logprobs=logprobs[:max_tokens], ended=None
            )
        return self._choice.push(step.token_ids, step.logprobs, step.ended)


class WatchedTokens:
    """Tokens that are read as they come, since each may complete a stop string.

    What follows a stop string is dropped.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._deltas: deque[TokenDelta] = deque()

    def __bool__(self) -> bool:
        return bool(self._deltas)

    def put(self, step: Step) -> None:
        """What the engine has given next; look at the choice's ``finished`` afterwards."""
        final = len(step.token_ids) - 1
        for place, token_id in enumerate(step.token_ids):
            if self._choice.finished is not None:
                return
            logprobs = step.logprobs[place : place + 1]
            ended = step.ended if place == final else None
            self._deltas.append(self._choice.push((token_id,), logprobs, ended))
        if step.ended is not None and self._choice.finished is None:
            self._deltas.append(self._choice.push((), (), step.ended))

    def cut(self, max_tokens: int) -> TokenDelta:
        """The first tokens of what there is."""
        parts: list[TokenDelta] = []
        room = max_tokens
        while self._deltas and len(self._deltas[0].token_ids) <= room:
            parts.append(self._deltas.popleft())
            room -= len(parts[-1].token_ids)
        return merged(parts)
