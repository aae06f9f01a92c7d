"""One worker as the router knows it: its channel, what it serves, how busy it is."""

import asyncio
import enum
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2_grpc

from router.crowd import Crowd
from router.load import WorkerLoad
from router.model import ServedModel
from sidecache.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc

# Of the slowest answer, with each further one: two of them halve it.
_ANSWER_FADES = 0.7


class State(enum.Enum):
    """Whether a worker may get new streams."""

    CONNECTING = "connecting"
    READY = "ready"
    UNHEALTHY = "unhealthy"


class Worker:
    """A worker and the streams this router has there.

    Attributes:
        name: the worker's own, once it has introduced itself; until then its address.
        block_size: tokens in one of its KV blocks.
        leases: streams this router has there now.
        last_lease: number of the newest lease, of all the pool has given.
        cordoned: an operator's word; running streams go on.
        is_damped: it came and went too often, and is used only where there is no other.
        doubted: set by whoever found it failing, for its health watch to find out.
        leaving_since: when its target stopped naming it; None: it still does.
        load: of those streams and of others' there, in tokens.
        crowd: those streams themselves, of this router.
        heard_at: the clock's time of its last message on any of them.
        words_due: those of them whose next word is due soon: asked and not answered, or past
            their first token; a prefill takes its time.
        answers_in_s: its slowest answers of late to small questions; None: none was asked.
        owes_words: it has said none for a while, and was asked whether it lives.
        misses_polls: it has not said in time how busy it is; nobody knows whether it lives.
        prompt_tokens: of this router's streams that ended well there, in its present epoch.
        cached_prompt_tokens: of those, found in its KV cache, as far as it says.
        tokenizer_fingerprint: with chat_template_fingerprint, which token ids it understands.
    """

    def __init__(self, address: str, channel: grpc.aio.Channel, clock: Callable[[], float]) -> None:
        self.address = address
        self.name = address
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.facts = worker_pb2_grpc.WorkerServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.model: ServedModel | None = None
        self.epoch = ""
        self.block_size = 0
        self.leases = 0
        self.last_lease = 0
        self.cordoned = False
        self.is_damped = False
        self.leaving_since: float | None = None
        self.doubted = asyncio.Event()
        self.load = WorkerLoad(clock)
        self.crowd = Crowd()
        self.heard_at = clock()
        self.words_due = 0
        self.owes_words = False
        self.misses_polls = False
        self.answers_in_s: float | None = None
        self.tokenizer_fingerprint = ""
        self.chat_template_fingerprint = ""
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self._clock = clock
        self._state = State.CONNECTING
        self.state_since = clock()

    @property
    def state(self) -> State:
        """What is known of its health."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self.is_damped = False
            self.state_since = self._clock()

    @property
    def is_ready(self) -> bool:
        """Whether it may get a new stream."""
        return self._state is State.READY and not self.cordoned and self.leaving_since is None

    def introduce(self, answer: worker_pb2.GetModelResponse) -> None:
        """Take in what the worker says of itself; a new epoch is a new worker."""
        self.model = ServedModel.from_worker(answer)
        self.name = answer.worker or self.address
        if answer.epoch != self.epoch:
            self.load.restarts()
            self.prompt_tokens = self.cached_prompt_tokens = 0
        self.epoch = answer.epoch
        self.misses_polls = False
        self.block_size = answer.block_size
        self.tokenizer_fingerprint = answer.tokenizer_fingerprint
        self.chat_template_fingerprint = answer.chat_template_fingerprint

    def heard(self) -> None:
        """A message came on one of its streams, or the first of them begins."""
        self.heard_at = self._clock()

    def answered(self, took_s: float) -> None:
        """It has answered a small question; what was slower fades with each answer."""
        self.misses_polls = False
        before = self.answers_in_s or 0.0
        self.answers_in_s = max(took_s, _ANSWER_FADES * before)

    @property
    def is_hushed(self) -> bool:
        """Whether it gets nothing new while another can serve."""
        return self.owes_words or self.misses_polls

    def is_quiet(self, quiet_s: float) -> bool:
        """Whether it has streams and has sent nothing on any of them for this long."""
        return bool(self.leases) and self._clock() - self.heard_at > quiet_s

    def served(self, usage: inference_pb2.Usage) -> None:
        """Count the prompt of a stream that ended well."""
        self.prompt_tokens += usage.prompt_tokens
        self.cached_prompt_tokens += usage.cached_prompt_tokens

    @property
    def is_full(self) -> bool:
        """Whether a new stream would have to wait for a slot, as far as it is known."""
        return 0 < self.load.slots <= self.leases + self.load.foreign_sequences

    @property
    def incarnation(self) -> str:
        """Its address and epoch: a restarted worker holds nothing of what it held before."""
        return f"{self.address} {self.epoch}"
