"""What a request may ask for. Every refusal names the field, its value and its range.

A worker checks again what only it can know (the prompt's length in tokens);
nothing here repeats that.
"""

import json

from router.cache_control import check_cache_control, check_duration
from router.model import ServedModel
from router.retention import check_retention
from router.settings import LimitSettings
from sidecache.errors import InvalidRequest, ModelNotFound
from sidecache.v1 import inference_pb2 as pb

MAX_REPETITION_PENALTY = 10
ROLES = ("system", "user", "assistant", "tool")
# Once: the enum's own values() asks its descriptor anew.
_LOSSES = frozenset(pb.OnWorkerLoss.values())


def validate(request: pb.GenerateRequest, model: ServedModel, limits: LimitSettings) -> None:
    """Check a request against the limits and the model it names.

    Raises:
        InvalidRequest: with ``field`` set to the path of what is wrong.
    """
    _check_routers_own(request)
    size = request.ByteSize()
    if size > limits.max_prompt_bytes:
        raise InvalidRequest(
            f"{size} bytes; at most {limits.max_prompt_bytes} are accepted", field="prompt"
        )
    _check_prompt(request, model, limits)
    if request.HasField("sampling"):
        _check_sampling(request.sampling)
    _check_amounts(request, model, limits)
    if request.stop:
        _check_stop(request, limits)
    if request.HasField("guided"):
        _check_guided(request.guided, model)
    if request.adapter and request.adapter not in model.adapters:
        raise ModelNotFound(
            f"adapter {request.adapter[: limits.max_name_bytes]!r} is not served;"
            f" there are: {_listed(model.adapters)}",
            kind="adapter",
            name=request.adapter[: limits.max_name_bytes],
        )
    if request.HasField("retention"):
        check_retention(request)
    _check_losses(request)
    if request.HasField("cache"):
        check_cache_control(request, limits)


def check_tokenizable(request: pb.TokenizeRequest, limits: LimitSettings) -> None:
    """Check the prompt of a Tokenize call.

    Raises:
        InvalidRequest: with ``field`` set.
    """
    if request.ByteSize() > limits.max_prompt_bytes:
        raise InvalidRequest(
            f"{request.ByteSize()} bytes; at most {limits.max_prompt_bytes} are accepted",
            field="prompt",
        )
    match request.WhichOneof("prompt"):
        case "chat":
            _check_chat(request.chat, limits)
        case "text":
            pass
        case _:
            raise InvalidRequest("empty; set text or chat", field="prompt")


def _check_prompt(request: pb.GenerateRequest, model: ServedModel, limits: LimitSettings) -> None:
    match request.WhichOneof("prompt"):
        case "chat":
            _check_chat(request.chat, limits)
        case "text":
            if not request.text:
                raise InvalidRequest("empty; give at least one character", field="text")
        case "token_ids":
            _check_token_ids(request.token_ids, model)
        case _:
            raise InvalidRequest("empty; set text, chat or token_ids", field="prompt")


def _check_token_ids(prompt: pb.TokenIds, model: ServedModel) -> None:
    if not prompt.ids:
        raise InvalidRequest("empty; a prompt needs at least one token id", field="token_ids.ids")
    largest = max(prompt.ids)
    if largest >= model.vocabulary_size:
        raise InvalidRequest(
            f"{largest} is not in the vocabulary of {model.name},"
            f" whose ids run from 0 to {model.vocabulary_size - 1}",
            field="token_ids.ids",
        )


def _check_chat(chat: pb.Chat, limits: LimitSettings) -> None:
    if not chat.messages:
        raise InvalidRequest("empty; a chat needs at least one message", field="chat.messages")
    if len(chat.messages) > limits.max_messages:
        raise InvalidRequest(
            f"{len(chat.messages)} messages; at most {limits.max_messages} are accepted",
            field="chat.messages",
        )
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                f"{message.role[:32]!r}; may be {', '.join(ROLES)}",
                field=f"chat.messages[{index}].role",
            )
    if not chat.messages[-1].content:
        raise InvalidRequest(
            "empty; the last message needs at least one character",
            field=f"chat.messages[{len(chat.messages) - 1}].content",
        )
    for index, tool in enumerate(chat.tools):
        if tool.parameters_json_schema:
            _check_json(tool.parameters_json_schema, f"chat.tools[{index}].parameters_json_schema")


def _check_sampling(sampling: pb.SamplingParameters) -> None:
    _in_range(sampling.temperature, 0, 2, "sampling.temperature")
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        raise InvalidRequest(f"{sampling.top_p:g}; may be above 0 up to 1", field="sampling.top_p")
    _in_range(sampling.presence_penalty, -2, 2, "sampling.presence_penalty")
    _in_range(sampling.frequency_penalty, -2, 2, "sampling.frequency_penalty")
    if (
        sampling.HasField("repetition_penalty")
        and not 0 < sampling.repetition_penalty <= MAX_REPETITION_PENALTY
    ):
        raise InvalidRequest(
            f"{sampling.repetition_penalty:g}; may be above 0 up to {MAX_REPETITION_PENALTY}",
            field="sampling.repetition_penalty",
        )


def _check_amounts(request: pb.GenerateRequest, model: ServedModel, limits: LimitSettings) -> None:
    if not 1 <= request.max_tokens <= model.context_length:
        raise InvalidRequest(
            f"{request.max_tokens}; may be 1 to {model.context_length},"
            f" the context of {model.name}",
            field="max_tokens",
        )
    max_choices = min(limits.max_choices, model.max_choices)
    if not 1 <= request.n <= max_choices:
        raise InvalidRequest(f"{request.n}; may be 1 to {max_choices}", field="n")
    if request.HasField("logprobs"):
        if not model.logprobs:
            raise InvalidRequest(f"{model.name} gives no log-probabilities", field="logprobs")
        if request.logprobs > model.max_top_logprobs:
            raise InvalidRequest(
                f"{request.logprobs}; may be 0 to {model.max_top_logprobs}", field="logprobs"
            )


def _check_stop(request: pb.GenerateRequest, limits: LimitSettings) -> None:
    if len(request.stop) > limits.max_stop_strings:
        raise InvalidRequest(
            f"{len(request.stop)} strings; at most {limits.max_stop_strings}", field="stop"
        )
    for index, stop in enumerate(request.stop):
        if not 1 <= len(stop.encode()) <= limits.max_stop_bytes:
            raise InvalidRequest(
                f"{len(stop.encode())} bytes; may be 1 to {limits.max_stop_bytes}",
                field=f"stop[{index}]",
            )


def _check_guided(guided: pb.GuidedDecoding, model: ServedModel) -> None:
    grammar = guided.WhichOneof("grammar")
    if grammar is None:
        raise InvalidRequest("empty; set json_schema or regex", field="guided")
    if not model.guided_decoding:
        raise InvalidRequest(f"{model.name} has no guided decoding", field="guided")
    if grammar == "json_schema":
        _check_json(guided.json_schema, "guided.json_schema")


def _check_routers_own(request: pb.GenerateRequest) -> None:
    if request.HasField("continuation"):
        raise InvalidRequest("only a router may continue a generation", field="continuation")
    if request.cache_salt:
        raise InvalidRequest("only a router may set it", field="cache_salt")


def _check_losses(request: pb.GenerateRequest) -> None:
    """What is to happen when a worker or the client's own connection is lost."""
    if request.on_worker_loss not in _LOSSES:
        raise InvalidRequest(f"{request.on_worker_loss} is no OnWorkerLoss", field="on_worker_loss")
    if request.HasField("attach_window"):
        check_duration(request.attach_window, "attach_window")
        if request.n > 1:
            raise InvalidRequest(
                f"set for {request.n} choices; may be set for one", field="attach_window"
            )


def _in_range(value: float, low: float, high: float, field: str) -> None:
    # Written so that NaN, which compares false with everything, is refused.
    if not low <= value <= high:
        raise InvalidRequest(f"{value:g}; may be {low:g} to {high:g}", field=field)


def _check_json(text: str, field: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"not JSON: {error}", field=field) from error
    except RecursionError as error:
        raise InvalidRequest("nested too deeply", field=field) from error


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
