"""What the scripted engine must say: the whole answer to a request, known beforehand.

This is an oracle, so it shares only the three pure functions with the engine
(token, text, seed of a prompt) and works out everything else by itself.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

from inference_svc.engines.scripted import prompt_seed, scripted_text, scripted_token
from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice, from its first token to its end.

    Attributes:
        text: what a client reads; shorter than the tokens' text where a stop
            string cut it.
        readable: characters of the tokens' text after each token: the text may
            lag behind it, and never runs ahead.
    """

    token_ids: tuple[int, ...]
    text: str
    readable: tuple[int, ...]
    reason: "pb.FinishReason.ValueType"


class Reference(Protocol):
    """Knows every answer in advance."""

    def answer(self, request: pb.GenerateRequest, choice: int) -> Answer:
        """The right answer; equal requests have equal ones."""

    def prompt_tokens(self, request: pb.GenerateRequest) -> int:
        """Length of the prompt, as usage must say it."""

    def max_tokens(self, request: pb.GenerateRequest) -> int:
        """What the request asks for, or what it gets when it does not say."""


@dataclass(frozen=True, slots=True)
class ScriptedReference:
    """The answers of ``inference_svc --engine scripted``.

    Attributes:
        default_max_tokens: of the router, for requests that name none.
        answer_tokens, context_length: the worker's settings of these names.
    """

    default_max_tokens: int = 256
    answer_tokens: int | None = None
    context_length: int = 8192

    def answer(self, request: pb.GenerateRequest, choice: int) -> Answer:
        prompt = tuple(_prompt_ids(request))
        sampling = request.sampling
        is_seeded = sampling.HasField("seed") and sampling.temperature > 0
        seed = sampling.seed if is_seeded else prompt_seed(prompt)
        most = self.max_tokens(request)
        # Beyond the context a request is refused, and no answer is the right one.
        length, reason = min(most, self.context_length), pb.FINISH_REASON_LENGTH
        if self.answer_tokens is not None and self.answer_tokens < most:
            length, reason = self.answer_tokens, pb.FINISH_REASON_STOP
        return _write(seed + choice, length, reason, tuple(request.stop))

    def prompt_tokens(self, request: pb.GenerateRequest) -> int:
        return len(_prompt_ids(request))

    def max_tokens(self, request: pb.GenerateRequest) -> int:
        return request.max_tokens if request.HasField("max_tokens") else self.default_max_tokens


def _prompt_ids(request: pb.GenerateRequest) -> list[int]:
    """One token for each UTF-8 byte of the prompt, rendered as the engine documents."""
    if request.WhichOneof("prompt") == "token_ids":
        return list(request.token_ids.ids)
    if request.WhichOneof("prompt") == "text":
        return list(request.text.encode())
    turns = [f"{turn.role}: {turn.content}\n" for turn in request.chat.messages]
    return list(("".join(turns) + "assistant:").encode())


# A history asks for the same answer many times: of each of its events, and of
# every call that an unexplained answer might belong to.
@functools.lru_cache(maxsize=4096)
def _write(
    seed: int, length: int, reason: "pb.FinishReason.ValueType", stops: tuple[str, ...]
) -> Answer:
    ids: list[int] = []
    readable: list[int] = []
    text = ""
    for position in range(length):
        ids.append(scripted_token(seed, position))
        text += scripted_text(ids[-1])
        readable.append(len(text))
        ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if ends:
            text, reason = text[: min(ends)], pb.FINISH_REASON_STOP
            break
    return Answer(tuple(ids), text, tuple(readable), reason)
