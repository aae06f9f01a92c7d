"""What the sidecar says of a missed prompt: its token ids, and who holds how much of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.model import ServedModel
from sidecache.v1 import cache_pb2


@dataclass(frozen=True, slots=True)
class PrefixHint:
    """Only a hint: without it, or with a wrong one, routing gets worse and answers stay right.

    Attributes:
        prompt_token_ids: empty: not known.
        tokenizer_fingerprint: what made the ids; they are of use only at workers with the
            same, and with the same ``chat_template_fingerprint``.
        prompt_blocks: whole blocks in the prompt.
        held: a worker's target to the leading blocks of the prompt that it holds;
            workers that hold none are left out.
    """

    prompt_token_ids: Sequence[int] = ()
    tokenizer_fingerprint: str = ""
    chat_template_fingerprint: str = ""
    block_size: int = 0
    prompt_blocks: int = 0
    held: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_sidecar(cls, answer: cache_pb2.PrefixHint, model: ServedModel) -> "PrefixHint | None":
        """What a sidecar says, as far as it can be true; None: nothing of it can.

        Args:
            answer: its hint for one prompt.
            model: what the prompt is for.
        """
        blocks, size = answer.prompt_blocks, answer.block_size
        if not size or blocks * size > model.context_length:
            return None
        ids: Sequence[int] = answer.prompt_token_ids.ids
        if ids and (len(ids) // size != blocks or not _are_ids_of(model, ids)):
            return None
        return cls(
            prompt_token_ids=ids,
            tokenizer_fingerprint=answer.tokenizer_fingerprint,
            chat_template_fingerprint=answer.chat_template_fingerprint,
            block_size=size,
            prompt_blocks=blocks,
            held={each.worker: min(each.blocks, blocks) for each in answer.held if each.blocks},
        )


def _are_ids_of(model: ServedModel, ids: Sequence[int]) -> bool:
    return len(ids) <= model.context_length and max(ids) < model.vocabulary_size
