"""Reads which prefix of its prompt a request asks to keep."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile

from inference_svc.engine import Chat, Retention
from sidecache.errors import InvalidRequest
from sidecache.v1 import inference_pb2 as pb

MAX_PRIORITY = 100

Tokenize = Callable[[Chat], Awaitable[list[int]]]


async def read_retention(
    request: pb.GenerateRequest, prompt: object, prompt_token_ids: Sequence[int], tokenize: Tokenize
) -> Retention | None:
    """The wish with its prefix counted in tokens; None if there is none.

    A chat's leading messages are rendered and tokenized by themselves. Templates may end
    a conversation otherwise than they go on in one, so only as many tokens count as
    both have in common: those are a prefix of the prompt, whatever the template does.

    Args:
        request: its ``retention`` is read.
        prompt_token_ids: of the whole prompt.
        prompt: as ``read_prompt`` gave it.
        tokenize: the engine's own.

    Raises:
        InvalidRequest: a field is out of its range, or the leading messages are refused.
    """
    if not request.HasField("retention"):
        return None
    wish = request.retention
    _check(wish, prompt)
    tokens = len(prompt_token_ids)
    if wish.leading_messages and isinstance(prompt, Chat):
        leading = Chat(prompt.messages[: wish.leading_messages], prompt.tools)
        tokens = _common_length(await tokenize(leading), prompt_token_ids)
    duration_s = wish.duration.ToNanoseconds() / 1e9 if wish.HasField("duration") else None
    return Retention(tokens, wish.priority, duration_s)


def _check(wish: pb.PrefixRetention, prompt: object) -> None:
    if not 1 <= wish.priority <= MAX_PRIORITY:
        raise InvalidRequest(
            f"{wish.priority} is not in [1, {MAX_PRIORITY}]", field="retention.priority"
        )
    if wish.HasField("duration") and wish.duration.ToNanoseconds() <= 0:
        raise InvalidRequest("must be above 0; unset: until evicted", field="retention.duration")
    messages = len(prompt.messages) if isinstance(prompt, Chat) else 0
    if wish.leading_messages > messages:
        raise InvalidRequest(
            f"{wish.leading_messages} of {messages} messages; 0 means the whole prompt",
            field="retention.leading_messages",
        )


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
