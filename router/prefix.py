"""What the sidecar says of a missed prompt: its token ids, and who holds how much of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
