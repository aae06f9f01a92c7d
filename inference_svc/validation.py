"""Reads a GenerateRequest and refuses what no engine should see, field by field."""

from collections.abc import Iterable

from inference_svc.engine import (
    Chat,
    ChatMessage,
    Continuation,
    GenerationRequest,
    Guided,
    ModelFacts,
    Retention,
    Sampling,
    Tool,
)
from sidecache.errors import InvalidRequest, ModelNotFound, NotFound, PromptTooLong
from sidecache.v1 import inference_pb2 as pb

ROLES = ("system", "user", "assistant", "tool")
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_GRAMMAR_CHARACTERS = 65_536
MAX_SALT_CHARACTERS = 256

Prompt = str | Chat | tuple[int, ...]


def check_model(model: str, facts: ModelFacts) -> None:
    """Refuse a request for a model that this worker does not serve; empty is ours."""
    if model and model != facts.name:
        raise ModelNotFound(
            f"model {model!r} is not served here; this worker has {facts.name!r}",
            kind="model",
            name=model,
        )


def read_prompt(
    request: pb.GenerateRequest | pb.TokenizeRequest, facts: ModelFacts, max_bytes: int
) -> Prompt:
    """The prompt, not yet tokenized: text, chat, or ids inside the vocabulary."""
    match request.WhichOneof("prompt"):
        case "text":
            _check_text(request.text, "text", max_bytes)
            return request.text
        case "chat":
            return _read_chat(request.chat, facts, max_bytes)
        case "token_ids" if isinstance(request, pb.GenerateRequest):
            if not request.token_ids.ids:
                raise InvalidRequest("is empty; give at least one id", field="token_ids.ids")
            _check_ids(request.token_ids.ids, facts, "token_ids.ids")
            return tuple(request.token_ids.ids)
        case _:
            raise InvalidRequest("is missing; set one of its kinds", field="prompt")


def read_request(
    request: pb.GenerateRequest,
    facts: ModelFacts,
    *,
    request_id: str,
    prompt_token_ids: tuple[int, ...],
    default_max_tokens: int,
    retention: Retention | None = None,
) -> GenerationRequest:
    """The request as an engine takes it.

    Raises:
        InvalidRequest: names the field, what it was and what it may be.
        PromptTooLong: prompt and answer do not fit the model's context.
        NotFound: the adapter is not known.
    """
    can = facts.capabilities
    sampling = _read_sampling(request.sampling)
    n = request.n if request.HasField("n") else 1
    _check_range(n, 1, can.max_choices, "n")
    logprobs = request.logprobs if request.HasField("logprobs") else None
    if logprobs is not None and not can.logprobs:
        raise InvalidRequest("this engine gives no log-probabilities", field="logprobs")
    if logprobs is not None:
        _check_range(logprobs, 0, can.max_top_logprobs, "logprobs")
    if request.adapter and request.adapter not in facts.adapters:
        raise NotFound(
            f"adapter {request.adapter!r} is not known; "
            f"this worker has {', '.join(facts.adapters) or 'none'}",
            kind="adapter",
            name=request.adapter,
        )
    _check_stop(request.stop)
    if len(request.cache_salt) > MAX_SALT_CHARACTERS:
        raise InvalidRequest(
            f"{len(request.cache_salt)} characters, at most {MAX_SALT_CHARACTERS}",
            field="cache_salt",
        )
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        max_tokens=_read_max_tokens(request, facts, len(prompt_token_ids), default_max_tokens),
        sampling=sampling,
        stop=tuple(request.stop),
        n=n,
        logprobs=logprobs,
        guided=_read_guided(request.guided, facts),
        adapter=request.adapter,
        priority=request.priority,
        continuation=_read_continuation(request, facts, n),
        cache_salt=request.cache_salt,
        retention=retention,
    )


def _read_chat(chat: pb.Chat, facts: ModelFacts, max_bytes: int) -> Chat:
    if not chat.messages:
        raise InvalidRequest("is empty; give at least one message", field="chat.messages")
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                f"{message.role[:40]!r} is unknown; it may be one of {', '.join(ROLES)}",
                field=f"chat.messages[{index}].role",
            )
    last = len(chat.messages) - 1
    _check_text(chat.messages[last].content, f"chat.messages[{last}].content", max_bytes)
    whole = sum(len(message.content) for message in chat.messages)
    if whole > max_bytes:
        raise PromptTooLong(
            f"{whole} characters, at most {max_bytes} are taken", field="chat.messages"
        )
    if chat.tools and not facts.capabilities.tools:
        raise InvalidRequest(
            f"{len(chat.tools)} given, but this model's chat template knows no tools",
            field="chat.tools",
        )
    return Chat(
        tuple(ChatMessage(message.role, message.content) for message in chat.messages),
        tuple(
            Tool(tool.name, tool.description, tool.parameters_json_schema) for tool in chat.tools
        ),
    )


def _check_text(text: str, field: str, max_bytes: int) -> None:
    if not text:
        raise InvalidRequest("is empty; a prompt has at least one character", field=field)
    if len(text) > max_bytes:
        raise PromptTooLong(f"{len(text)} characters, at most {max_bytes} are taken", field=field)


def _check_ids(ids: Iterable[int], facts: ModelFacts, field: str) -> None:
    for index, token_id in enumerate(ids):
        if token_id >= facts.vocabulary_size:
            raise InvalidRequest(
                f"{token_id} is not in the vocabulary; ids go from 0 to "
                f"{facts.vocabulary_size - 1}",
                field=f"{field}[{index}]",
            )


def _check_range(value: float, low: float, high: float, field: str) -> None:
    # Also refuses NaN, which compares false with everything.
    if not low <= value <= high:
        raise InvalidRequest(f"{value:.10g} is not in [{low:.10g}, {high:.10g}]", field=field)


def _read_sampling(sampling: pb.SamplingParameters) -> Sampling:
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    repetition = sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0
    _check_range(sampling.temperature, 0, 2, "sampling.temperature")
    _check_range(sampling.presence_penalty, -2, 2, "sampling.presence_penalty")
    _check_range(sampling.frequency_penalty, -2, 2, "sampling.frequency_penalty")
    if not 0 < top_p <= 1:
        raise InvalidRequest(f"{top_p:g} is not in (0, 1]", field="sampling.top_p")
    if not 0 < repetition < float("inf"):
        raise InvalidRequest(
            f"{repetition:g} is not a number above 0", field="sampling.repetition_penalty"
        )
    return Sampling(
        temperature=sampling.temperature,
        top_p=top_p,
        top_k=sampling.top_k,
        seed=sampling.seed if sampling.HasField("seed") else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=repetition,
    )


def _check_stop(stop: Iterable[str]) -> None:
    stops = list(stop)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"{len(stops)} strings, at most {MAX_STOPS}", field="stop")
    for index, text in enumerate(stops):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"{len(text)} characters; it may have 1 to {MAX_STOP_CHARACTERS}",
                field=f"stop[{index}]",
            )


def _read_max_tokens(
    request: pb.GenerateRequest, facts: ModelFacts, num_prompt_tokens: int, default: int
) -> int:
    room = facts.context_length - num_prompt_tokens
    if room < 1:
        raise PromptTooLong(
            f"{num_prompt_tokens} tokens; the context of {facts.context_length} must hold the "
            "prompt and at least one token more",
            field="prompt",
        )
    if not request.HasField("max_tokens"):
        return min(default, room)
    if request.max_tokens < 1:
        raise InvalidRequest(f"{request.max_tokens} is below 1", field="max_tokens")
    if request.max_tokens > room:
        raise PromptTooLong(
            f"{request.max_tokens} and the prompt's {num_prompt_tokens} tokens do not fit the "
            f"context of {facts.context_length}; at most {room} are left",
            field="max_tokens",
        )
    return request.max_tokens


def _read_guided(guided: pb.GuidedDecoding, facts: ModelFacts) -> Guided | None:
    kind = guided.WhichOneof("grammar")
    if kind is None:
        return None
    field = f"guided.{kind}"
    if not facts.capabilities.guided_decoding:
        raise InvalidRequest("this engine cannot follow a grammar", field=field)
    grammar = guided.json_schema if kind == "json_schema" else guided.regex
    if not 1 <= len(grammar) <= MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(
            f"{len(grammar)} characters; it may have 1 to {MAX_GRAMMAR_CHARACTERS}", field=field
        )
    return Guided(kind, grammar)


def _read_continuation(
    request: pb.GenerateRequest, facts: ModelFacts, n: int
) -> Continuation | None:
    if not request.HasField("continuation"):
        return None
    ids = request.continuation.delivered_token_ids
    _check_ids(ids, facts, "continuation.delivered_token_ids")
    if n != 1:
        raise InvalidRequest(f"only one choice can be continued, not {n}", field="n")
    if request.HasField("guided"):
        raise InvalidRequest("a guided answer cannot be continued", field="continuation")
    return Continuation(tuple(ids), request.continuation.delivered_text)
