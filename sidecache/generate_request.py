"""From Python arguments to a GenerateRequest, with a clear word on a bad one."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from google.protobuf import duration_pb2, message

from sidecache.errors import InvalidRequest
from sidecache.v1 import inference_pb2 as pb

Prompt = str | Sequence[pb.ChatMessage | Mapping[str, str]]
"""One user turn, or the messages of a chat."""


class GenerateOptions(TypedDict, total=False):
    """What a generation may be told besides its prompt; the router has the defaults.

    Attributes:
        model: a name from ``client.models()``; the router's default when absent.
        text: instead of a prompt: completed as it stands, without a chat template.
        token_ids: instead of a prompt: the model's own ids, used as they are.
        max_tokens: most tokens to generate, at least 1.
        temperature: in [0, 2]; 0, the default, is greedy and therefore cacheable.
        top_p: in (0, 1].
        top_k: 0 is every token.
        seed: makes sampling repeatable, and therefore cacheable.
        presence_penalty: in [-2, 2].
        frequency_penalty: in [-2, 2].
        repetition_penalty: above 0; 1 is none.
        stop: generation ends before any of these strings.
        n: number of choices, at least 1.
        logprobs: top log-probabilities to return beside each token's own.
        guided: a JSON schema or a regular expression that the answer must match.
        adapter: a LoRA adapter known to the workers.
        priority: higher is served first.
        tools: what the model may call.
        cache: mode, namespace, ages and tags; see ``CacheControl``.
        retention: asks to keep the prompt's beginning in the worker's KV cache, a
            ``PrefixRetention``: ``priority`` 1 to what the key allows, ``duration``,
            ``leading_messages`` (0: the whole prompt).
        attach_window_s: how long the router keeps the stream if the connection is lost, for
            ``client.attach``.
        on_worker_loss: ``pb.ON_WORKER_LOSS_BEST_EFFORT`` takes a continuation that may differ
            where an exact one cannot be had; the default ends the stream then.
    """

    model: str
    text: str
    token_ids: Sequence[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    stop: Sequence[str]
    n: int
    logprobs: int
    guided: pb.GuidedDecoding
    adapter: str
    priority: int
    tools: Sequence[pb.Tool]
    cache: pb.CacheControl
    retention: pb.PrefixRetention
    attach_window_s: float
    on_worker_loss: pb.OnWorkerLoss


_SAMPLING = frozenset(
    field.name
    for field in pb.SamplingParameters.DESCRIPTOR.fields
    if field.name in GenerateOptions.__annotations__
)
_SCALARS = ("model", "max_tokens", "n", "logprobs", "adapter", "priority", "on_worker_loss")


def build_request(prompt: Prompt | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Build the request that ``prompt`` and ``options`` describe.

    An option that is absent or None stays unset. What the types cannot say (a
    temperature in range, a known model) is the server's to judge.

    Raises:
        InvalidRequest: no prompt or more than one kind of it, an unknown option,
            or a value that its field cannot hold.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - GenerateOptions.__annotations__.keys()):
        raise InvalidRequest(
            f"unknown; known: {', '.join(GenerateOptions.__annotations__)}", field=unknown[0]
        )
    request = pb.GenerateRequest()
    _set_prompt(request, prompt, given)
    for name in _SCALARS:
        if name in given:
            _set(request, name, given[name])
    for name in _SAMPLING & given.keys():
        _set(request.sampling, name, given[name], prefix="sampling.")
    for name in ("guided", "cache", "retention"):
        if name in given:
            _merge(getattr(request, name), name, given[name])
    if "attach_window_s" in given:
        _set_seconds(request.attach_window, "attach_window_s", given["attach_window_s"])
    if "stop" in given:
        # A lone string would silently become one stop for each of its characters.
        stop = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
        _extend(request.stop, "stop", stop)
    return request


def _set_seconds(target: duration_pb2.Duration, name: str, value: object) -> None:
    try:
        target.FromNanoseconds(round(float(value) * 1e9))  # type: ignore[arg-type]  # tried out here
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{value!r} is no number of seconds", field=name) from error


def chat_messages(prompt: Prompt) -> list[pb.ChatMessage]:
    """The chat that a prompt stands for: a plain string is one user turn."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages: list[pb.ChatMessage] = []
    for turn in prompt:
        if isinstance(turn, pb.ChatMessage):
            messages.append(turn)
            continue
        try:
            messages.append(pb.ChatMessage(**turn))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(str(error), field=f"chat.messages[{len(messages)}]") from error
    return messages


def _set_prompt(
    request: pb.GenerateRequest, prompt: Prompt | None, given: Mapping[str, object]
) -> None:
    kinds = [name for name in ("text", "token_ids") if name in given]
    if prompt is not None:
        kinds.insert(0, "prompt")
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none of them"
        raise InvalidRequest(f"give one of prompt, text and token_ids; got {got}", field="prompt")
    if prompt is not None:
        request.chat.messages.extend(chat_messages(prompt))
        # An empty chat is still a chat; the server says what is wrong with it.
        request.chat.SetInParent()
        _extend(request.chat.tools, "chat.tools", given.get("tools", ()))
    elif "text" in given:
        _set(request, "text", given["text"])
    else:
        request.token_ids.SetInParent()
        _extend(request.token_ids.ids, "token_ids", given["token_ids"])


def _set(target: message.Message, name: str, value: object, prefix: str = "") -> None:
    try:
        setattr(target, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{_shown(value)} does not fit: {error}", field=prefix + name
        ) from error


def _extend(target: object, field: str, values: object) -> None:
    try:
        target.extend(values)  # type: ignore[attr-defined]  # every repeated container has it
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{_shown(values)} does not fit: {error}", field=field) from error


def _merge(target: message.Message, field: str, value: object) -> None:
    try:
        target.SetInParent()
        target.MergeFrom(value)  # type: ignore[arg-type]  # it checks the type itself
    except TypeError as error:
        raise InvalidRequest(f"{_shown(value)} does not fit: {error}", field=field) from error


def _shown(value: object, limit: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else shown[:limit] + "…"
