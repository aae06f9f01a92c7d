"""The Engine protocol: what a worker needs from whatever generates tokens.

Plain dataclasses only: an engine knows neither protobuf nor gRPC. Every engine
in :mod:`inference_svc.engines` passes one contract suite, tests/contract.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

from inference_svc.kv_events import KvListener
from sidecache.errors import EngineFailed, SidecacheError


class FinishReason(Enum):
    """Why a choice ended."""

    STOP = "stop"  # end of sequence or a stop string
    LENGTH = "length"  # max_tokens reached


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn; ``role`` is one of system, user, assistant, tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; its arguments are described by a JSON schema."""

    name: str
    description: str
    parameters_json_schema: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, to be rendered with the model's own template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; then nothing below but the penalties counts.
        top_k: 0 is every token.
        seed: None draws a new one for each request.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Guided:
    """A grammar the text must follow."""

    kind: Literal["json_schema", "regex"]
    grammar: str


@dataclass(frozen=True, slots=True)
class Continuation:
    """What another worker already delivered of choice 0."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Retention:
    """A prefix to keep in the KV cache longer than use alone would.

    Attributes:
        prompt_tokens: length of the prefix, from the first token.
        priority: 1 to 100; higher is evicted later.
        duration_s: for how long; None: until evicted.
    """

    prompt_tokens: int
    priority: int
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One validated request.

    Attributes:
        max_tokens: tokens of each choice, those of ``continuation`` included.
        logprobs: None for none, 0 for the chosen token's own, k for k more.
        cache_salt: prompts share KV blocks only under equal salts; empty: none.
        retention: only a wish; an engine without priorities ignores it.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    guided: Guided | None = None
    adapter: str = ""
    priority: int = 0
    continuation: Continuation | None = None
    cache_salt: str = ""
    retention: Retention | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of one token, and the best others as (id, logprob)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What became known of one choice.

    Attributes:
        offset: index of the first of ``token_ids`` in this choice, from 0.
        text: what became readable; may lag the ids by an unfinished character
            or by the possible beginning of a stop string.
        logprobs: one for each token, or empty if none were asked for.
        finish_reason: set on the last delta of the choice and nowhere else.
        cached_prompt_tokens: on one delta, how much of the prompt was in the KV cache: on
            the first of the stream, or where the engine hears of it late, on a choice's last.
            None on all: the engine does not know.
    """

    choice: int
    offset: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    cached_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What a request may ask of this engine.

    Attributes:
        cached_tokens_estimated: ``TokenDelta.cached_prompt_tokens`` is modelled, not reported.
        kv_events: the engine tells its listener what its KV cache holds.
        cache_salt: prompts under different salts share no KV blocks.
        retention: prefixes can be kept longer by priority.
        exact_continuation: greedy tokens follow from the tokens before them alone, whatever
            else is in the batch; another worker can go on with a stream.
    """

    guided_decoding: bool
    logprobs: bool
    seeded_sampling: bool
    priorities: bool
    tools: bool
    max_choices: int
    max_top_logprobs: int
    cached_tokens_estimated: bool = False
    kv_events: bool = False
    cache_salt: bool = False
    retention: bool = False
    exact_continuation: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Who answers. Streams move only between workers that agree on all of it.

    Attributes:
        name: what a request calls the model.
        revision: sha256 of the weights, hex.
        engine: the family, such as ``openvino``.
        build: version of engine and of everything that changes its numbers.
        block_size: tokens in one KV block; 0 if there are none.
        tokenizer_fingerprint: sha256 of the tokenizer's files, hex.
        chat_template_fingerprint: sha256 of the template, hex; empty without one.
        tokenizer_files: name to content.
    """

    name: str
    revision: str
    engine: str
    build: str
    context_length: int
    vocabulary_size: int
    block_size: int
    tokenizer_fingerprint: str
    chat_template_fingerprint: str
    tokenizer_files: dict[str, bytes]
    capabilities: EngineCapabilities
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Of all the GPUs of an engine together.

    Attributes:
        utilization: share of the last moments in which a kernel ran, 0 to 1; the mean.
    """

    used_bytes: int
    total_bytes: int
    utilization: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is now.

    Attributes:
        kv_cache_usage: share of KV blocks in use, 0 to 1; None if the engine
            does not say. Blocks kept for reuse alone are not in use.
        kv_blocks: what the KV cache can hold; None if the engine does not say.
        gpu: None without one, or without its driver's word.
    """

    running_sequences: int
    waiting_sequences: int
    max_sequences: int
    waiting_prompt_tokens: int
    kv_cache_usage: float | None = None
    kv_blocks: int | None = None
    gpu: GpuFigures | None = None


@runtime_checkable
class MergingStream(Protocol):
    """A stream whose engine puts together what nobody has taken yet.

    Read only when a message is due, it costs nothing between two messages: a token that
    nobody waits for wakes nobody. It is an iterator of single deltas too.
    """

    @property
    def over(self) -> bool:
        """Whether everything was taken and the engine ended the stream well."""

    async def take(self, max_tokens: int, timeout_s: float) -> TokenDelta | None:
        """What there is, of one choice; None if there is nothing in time, or no more at all.

        Cancelled, it loses nothing.

        Args:
            max_tokens: what is more stays for the next call.
            timeout_s: how long to wait for the first token.

        Raises:
            SidecacheError: the engine failed, after everything it gave was taken.
        """

    async def rest(self, until: float) -> None:
        """Return at this time of the loop's clock, or once nothing more will come."""

    def end(self, error: SidecacheError) -> None:
        """End the stream with this error; what there is can still be taken."""

    def __aiter__(self) -> AsyncIterator[TokenDelta]: ...

    async def __anext__(self) -> TokenDelta: ...


class Engine(Protocol):
    """Generates tokens for many requests at once (in-flight batching, Orca)."""

    @property
    def facts(self) -> ModelFacts:
        """Who answers; known once :meth:`load` has returned."""

    def listen_kv(self, listener: KvListener) -> None:
        """Tell this listener of every change of the KV cache; called before :meth:`load`.

        An engine without ``capabilities.kv_events`` never calls it.
        """

    async def load(self) -> None:
        """Make ready to serve, warm-up included.

        Raises:
            SetupError: the model cannot be used; says which file and what to do.
        """

    async def aclose(self) -> None:
        """Abort what runs and give everything back. Safe to call twice."""

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        """The ids the model would see: of text as it stands, of a chat rendered.

        Raises:
            InvalidRequest: the model's template refuses the chat.
        """

    def submit(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[TokenDelta]]:
        """Run one request; leaving the block aborts what is not finished.

        Entering does not wait for a slot; the iterator does. It yields the
        deltas of each choice in order, each choice's last one with its finish
        reason, and ends after the last choice. Its ``__anext__`` may be
        cancelled and called again without losing a token. Nothing is dropped
        for a slow reader: at most ``n * max_tokens`` tokens wait. The iterator
        may be a :class:`MergingStream`.

        Raises:
            Overloaded: the waiting queue is full.
            InvalidRequest: the engine cannot do this; names the field.
            EngineFailed: the engine died, before or while this request ran.
        """

    def load_figures(self) -> EngineLoad:
        """How busy the engine is now."""

    def silent_s(self) -> float:
        """Seconds since a busy engine last showed life; 0 when it has nothing to do."""

    async def wait_failed(self) -> EngineFailed:
        """Return only when the engine has died, with the reason."""
