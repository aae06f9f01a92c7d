"""A model as the fleet serves it: what a request is checked and keyed against."""

from dataclasses import dataclass

from sidecache.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The identity and limits that one or more workers share.

    Workers with equal values are interchangeable: the same checkpoint on the
    same build of the same engine.
    """

    name: str
    revision: str
    engine: str
    engine_build: str
    context_length: int
    vocabulary_size: int
    max_choices: int
    max_top_logprobs: int
    logprobs: bool
    guided_decoding: bool
    exact_continuation: bool
    adapters: frozenset[str]

    def __hash__(self) -> int:
        # It is looked up several times in every request; equality still compares everything.
        return hash((self.name, self.revision))

    @classmethod
    def from_worker(cls, answer: worker_pb2.GetModelResponse) -> "ServedModel":
        """What a worker says of itself."""
        can = answer.capabilities
        return cls(
            name=answer.name,
            revision=answer.revision,
            engine=answer.engine,
            engine_build=answer.engine_build,
            context_length=answer.context_length,
            vocabulary_size=answer.vocabulary_size,
            max_choices=max(1, can.max_choices),
            max_top_logprobs=can.max_top_logprobs,
            logprobs=can.logprobs,
            guided_decoding=can.guided_decoding,
            exact_continuation=can.exact_continuation,
            adapters=frozenset(answer.adapters),
        )
