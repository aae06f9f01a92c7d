"""The models of the workers that are followed, each with the index of its KV blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cache_svc.prefix_index import PrefixIndex, TooManyBlocks
from cache_svc.prompt_tokenizer import Fingerprints
from sidecache.v1 import worker_pb2

MAX_BLOCK_SIZE = 1 << 16


class UnusableModel(Exception):
    """A worker describes a model that blocks cannot be named for."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What workers must have in common for their blocks to be comparable.

    Attributes:
        salted: prompts under different salts share no blocks, so salts are in the names.
    """

    name: str
    revision: str
    block_size: int
    fingerprints: Fingerprints
    context_length: int
    vocabulary_size: int
    salted: bool

    @classmethod
    def of_worker(cls, answer: worker_pb2.GetModelResponse) -> "ModelIdentity":
        """What a worker says of itself.

        Raises:
            UnusableModel: it has no blocks, or a size that none can have.
        """
        if not answer.revision or not 1 <= answer.block_size <= MAX_BLOCK_SIZE:
            raise UnusableModel(f"block size {answer.block_size}")
        return cls(
            name=answer.name,
            revision=answer.revision,
            block_size=answer.block_size,
            fingerprints=Fingerprints(
                answer.tokenizer_fingerprint, answer.chat_template_fingerprint
            ),
            context_length=answer.context_length,
            vocabulary_size=answer.vocabulary_size,
            salted=answer.capabilities.cache_salt,
        )


@dataclass(slots=True)
class FollowedModel:
    """A model, its index, and who serves it."""

    identity: ModelIdentity
    index: PrefixIndex
    workers: set[str] = field(default_factory=set)


class FollowedModels:
    """One index for each model revision and block size; gone with its last worker.

    Args:
        max_blocks_per_worker: most blocks kept of one worker.
        max_blocks: of all together.
    """

    def __init__(self, max_blocks_per_worker: int, max_blocks: int) -> None:
        self._max_blocks_per_worker = max_blocks_per_worker
        self._max_blocks = max_blocks
        self._models: dict[ModelIdentity, FollowedModel] = {}
        self._serves: dict[str, FollowedModel] = {}

    def __iter__(self) -> Iterator[FollowedModel]:
        return iter(self._models.values())

    @property
    def blocks(self) -> int:
        """Blocks of all workers together."""
        return sum(len(model.index) for model in self._models.values())

    def find(self, name: str, revision: str) -> FollowedModel | None:
        """The model of a prompt; of several kinds of worker, the one that most are of."""
        kinds = [
            model
            for identity, model in self._models.items()
            if identity.name == name and identity.revision == revision
        ]
        return max(kinds, key=lambda model: len(model.workers), default=None)

    def of_worker(self, worker: str) -> FollowedModel | None:
        """What a worker serves."""
        return self._serves.get(worker)

    def join(self, worker: str, identity: ModelIdentity) -> None:
        """A worker serves this model; if it served another, that is forgotten."""
        serves = self._serves.get(worker)
        if serves is not None and serves.identity != identity:
            self.leave(worker)
        model = self._models.get(identity)
        if model is None:
            index = PrefixIndex(self._max_blocks_per_worker)
            model = self._models[identity] = FollowedModel(identity, index)
        model.workers.add(worker)
        self._serves[worker] = model

    def leave(self, worker: str) -> None:
        """A worker is gone; so is the index of its model, if it was the last one."""
        model = self._serves.pop(worker, None)
        if model is None:
            return
        model.index.forget(worker)
        model.workers.discard(worker)
        if not model.workers:
            del self._models[model.identity]

    def check_room(self, worker: str, blocks: int) -> None:
        """Refuse blocks that would exceed what is kept of all workers together.

        Raises:
            TooManyBlocks: they would; what the worker had is forgotten.
        """
        if self.blocks + blocks > self._max_blocks:
            model = self._serves.get(worker)
            if model is not None:
                model.index.cleared(worker)
            raise TooManyBlocks(f"more than {self._max_blocks} blocks of all workers")
