"""What each kind of server understands beyond OpenAI's fields, and how it tells token ids.

Streams are continued, counted and named by token ids, which OpenAI's interface does not
have. vLLM gives them when asked (``return_token_ids``), llama.cpp, nearly all of them, beside
its log-probabilities. From any other server only text comes; its ids are then made here, by
encoding each piece of text again: the text is exact, the number of tokens is not the
server's.
"""

import json
from typing import Any, Protocol

from inference_svc.engine import FinishReason, GenerationRequest, Guided, TokenLogprob
from inference_svc.engines.sequence_stream import Step
from sidecache.errors import EngineFailed, InvalidRequest, SetupError

_REASONS = {None: None, "": None, "stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_OWNERS = {"vllm": "vllm", "llamacpp": "llama_cpp"}

Fields = dict[str, Any]


class Words(Protocol):
    """What a dialect needs of a tokenizer."""

    def encode(self, prompt: str) -> list[int]:
        """Text to ids, whose text is the same again."""

    def decode(self, token_ids: list[int]) -> str:
        """The text of a few ids by themselves."""


class Dialect(Protocol):
    """One kind of server.

    Attributes:
        usage_comes_last: how much was cached is told in an event of its own, after the last
            token's.
    """

    name: str
    tells_ids: bool
    knows_logprobs: bool
    knows_guided: bool
    knows_top_k: bool
    knows_salt: bool
    knows_priority: bool
    usage_comes_last: bool

    def more_fields(self, request: GenerationRequest) -> Fields:
        """Fields of the request beyond OpenAI's.

        Raises:
            InvalidRequest: the server cannot do it; names the field.
        """

    def read(self, choice: Fields, logprobs: bool) -> tuple[list[int], list[TokenLogprob]]:
        """New ids of a choice, and their log-probabilities if wanted."""


class Vllm:
    """vLLM's server, 0.25 and newer.

    It tells how much was cached if started with ``--enable-prompt-tokens-details``.

    Args:
        priorities: it was started with ``--scheduling-policy priority``.
    """

    name = "vllm"
    tells_ids = knows_logprobs = knows_guided = knows_top_k = knows_salt = True
    usage_comes_last = True

    def __init__(self, *, priorities: bool) -> None:
        self.knows_priority = priorities

    def more_fields(self, request: GenerationRequest) -> Fields:
        sampling = request.sampling
        fields: Fields = {
            "return_token_ids": True,
            "repetition_penalty": sampling.repetition_penalty,
            "top_k": sampling.top_k,
            "min_p": 0.0,
        }
        if self.knows_priority:
            # Ours: higher first. vLLM's: lower first.
            fields["priority"] = -request.priority
        if request.cache_salt:
            fields["cache_salt"] = request.cache_salt
        if request.logprobs is not None:
            fields["logprobs"] = 0
        if request.guided is not None:
            kind = "json" if request.guided.kind == "json_schema" else "regex"
            fields["structured_outputs"] = {kind: _grammar(request.guided)}
        return fields

    def read(self, choice: Fields, logprobs: bool) -> tuple[list[int], list[TokenLogprob]]:
        ids = [int(each) for each in choice.get("token_ids") or ()]
        told = (choice.get("logprobs") or {}).get("token_logprobs") or () if logprobs else ()
        return ids, [TokenLogprob(float(each)) for each in told]


class LlamaCpp:
    """llama.cpp's server: ids stand beside log-probabilities, so those are always asked for.

    Of a character that is several tokens it tells only the last. The others are made here
    by encoding the text again, and have no log-probability.

    Args:
        words: the model's tokenizer.
    """

    name = "llama_cpp"
    tells_ids = knows_logprobs = knows_guided = knows_top_k = True
    knows_salt = knows_priority = usage_comes_last = False

    def __init__(self, words: Words) -> None:
        self._words = words

    def more_fields(self, request: GenerationRequest) -> Fields:
        sampling = request.sampling
        fields: Fields = {
            "logprobs": 1,
            "timings_per_token": True,
            "top_k": sampling.top_k,
            # Its own defaults are not ours.
            "min_p": 0.0,
            "repeat_penalty": sampling.repetition_penalty,
            # Its penalties count the prompt's tokens too, within this window.
            "repeat_last_n": len(request.prompt_token_ids) + request.max_tokens,
        }
        if request.guided is not None:
            if request.guided.kind == "regex":
                raise InvalidRequest("llama.cpp follows JSON schemas only", field="guided")
            fields["json_schema"] = _grammar(request.guided)
        return fields

    def read(self, choice: Fields, logprobs: bool) -> tuple[list[int], list[TokenLogprob]]:
        told = (choice.get("logprobs") or {}).get("content") or ()
        ids = [int(each["id"]) for each in told]
        text = str(choice.get("text") or "")
        # Vocabularies that are not byte-level read a leading space differently when alone.
        if not text.isascii() and self._words.decode(ids).strip() != text.strip():
            if logprobs:
                # Another server of its kind could do no better, and this one is well.
                raise InvalidRequest(
                    "llama.cpp tells no log-probabilities of parts of a character, which this "
                    "answer has",
                    field="logprobs",
                )
            return self._words.encode(text), []
        values = [TokenLogprob(min(0.0, float(each["logprob"]))) for each in told]
        return ids, values if logprobs else []


class OpenAi:
    """Any other server (SGLang, trtllm-serve, TGI): text only.

    Args:
        words: the model's tokenizer.
    """

    name = "openai"
    tells_ids = knows_logprobs = knows_guided = knows_top_k = knows_salt = False
    knows_priority = usage_comes_last = False

    def __init__(self, words: Words) -> None:
        self._words = words

    def more_fields(self, request: GenerationRequest) -> Fields:
        if request.sampling.top_k:
            raise InvalidRequest("this remote server may not know it", field="sampling.top_k")
        if request.sampling.repetition_penalty != 1:
            raise InvalidRequest(
                "this remote server may not know it", field="sampling.repetition_penalty"
            )
        return {}

    def read(self, choice: Fields, logprobs: bool) -> tuple[list[int], list[TokenLogprob]]:
        text = choice.get("text") or ""
        return self._words.encode(text) if text else [], []


def choose_dialect(wanted: str, owner: str, words: Words, *, priorities: bool) -> Dialect:
    """The dialect that the settings name, or that ``owned_by`` of /models stands for.

    Raises:
        SetupError: priorities are claimed of a server that has none.
    """
    name = _OWNERS.get(owner, "openai") if wanted == "auto" else wanted
    if name == "vllm":
        return Vllm(priorities=priorities)
    if priorities:
        raise SetupError(f"remote.priorities is for vLLM, and this server is {name} ({owner[:40]})")
    return LlamaCpp(words) if name == "llama_cpp" else OpenAi(words)


def completion_body(
    dialect: Dialect,
    model: str,
    request: GenerationRequest,
    prompt: list[int],
    done: int,
    seed: int,
) -> Fields:
    """A request for one choice; stop strings are ours to find.

    ``prompt`` ends with ``done`` tokens of the answer.
    """
    sampling = request.sampling
    body: Fields = {
        "model": model,
        "prompt": prompt,
        "max_tokens": request.max_tokens - done,
        "temperature": sampling.temperature,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.temperature > 0:
        # Servers keep it in 32 bits, some with a sign.
        body |= {"top_p": sampling.top_p, "seed": seed % 2**31}
    return body | dialect.more_fields(request)


def read_step(dialect: Dialect, event: Fields, logprobs: bool) -> Step:
    """What one event says of its only choice.

    Raises:
        EngineFailed: it is not an event of a completion.
    """
    try:
        choices = event.get("choices") or [{}]
        ids, values = dialect.read(choices[0], logprobs)
        ended = _REASONS[choices[0].get("finish_reason")]
        return Step(ids, values, ended, _cached_tokens(event))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EngineFailed(
            f"the remote server sent an event that is no completion ({type(error).__name__})"
        ) from error


def _cached_tokens(event: Fields) -> int | None:
    """How much of the prompt needed no prefill, where the server says so."""
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    told = details.get("cached_tokens", (event.get("timings") or {}).get("cache_n"))
    return int(told) if told is not None else None


def _grammar(guided: Guided) -> Any:
    return json.loads(guided.grammar) if guided.kind == "json_schema" else guided.grammar
