"""The tokenizer of a model that runs elsewhere, from a GGUF file or a checkpoint folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference_svc.byte_level import ByteLevelDecoder
from inference_svc.choice import TextDecoder
from inference_svc.engine import Chat
from inference_svc.engines.checkpoint import read_checkpoint
from inference_svc.engines.gguf import GgufFile, read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from inference_svc.engines.hf_tokenizer import HfTokenizer


@dataclass(frozen=True)
class LocalTokenizer:
    """What a worker must know of a model to send and read token ids.

    Attributes:
        size: ids the model may give.
        decoder: makes a fresh one for each choice.
    """

    size: int
    end_token_ids: frozenset[int]
    to_ids: Callable[[str | Chat], list[int]]
    decoder: Callable[[], TextDecoder]
    knows_tools: bool
    fingerprint: str
    template_fingerprint: str
    files: dict[str, bytes]

    def encode(self, prompt: str | Chat) -> list[int]:
        """The ids of a text as it stands, or of a chat rendered for an answer.

        Raises:
            InvalidRequest: the template refuses the chat.
        """
        return self.to_ids(prompt)

    def decode(self, token_ids: list[int]) -> str:
        """The text of ids by themselves, special tokens left out."""
        decoder = self.decoder()
        return decoder.push(token_ids) + decoder.flush()


def read_tokenizer(path: Path) -> LocalTokenizer:
    """Read the tokenizer; weights beside it are not looked at, except to hash a GGUF file.

    Args:
        path: a GGUF file, or a folder with config.json and tokenizer.json.

    Raises:
        SetupError: a file is missing or broken.
    """
    return _of_folder(path) if path.is_dir() else tokenizer_of(read_gguf(path))


def _of_folder(path: Path) -> LocalTokenizer:
    checkpoint = read_checkpoint(path, with_weights=False)
    tokenizer = HfTokenizer(path, checkpoint.vocabulary_size)
    return LocalTokenizer(
        max(tokenizer.size, checkpoint.vocabulary_size),
        checkpoint.end_token_ids,
        tokenizer.encode,
        tokenizer.decoder,
        tokenizer.knows_tools,
        tokenizer.fingerprint,
        tokenizer.template_fingerprint,
        tokenizer.files,
    )


def tokenizer_of(model: GgufFile) -> LocalTokenizer:
    """The tokenizer of a file that was read already."""
    tokenizer = GgufTokenizer(model)
    return LocalTokenizer(
        len(tokenizer.vocabulary),
        frozenset([model.get("tokenizer.ggml.eos_token_id", int)]),
        tokenizer.encode,
        lambda: ByteLevelDecoder(tokenizer.vocabulary),
        tokenizer.knows_tools,
        tokenizer.fingerprint,
        tokenizer.template_fingerprint,
        tokenizer.files,
    )
