"""The tokenizer and chat template inside a GGUF file.

Built as a tokenizer.json of the `tokenizers` library, so that whoever fetches a
worker's tokenizer files gets the very tokenizer the worker uses.
"""

import hashlib
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from inference_svc.byte_level import token_bytes
from inference_svc.chat_template import ChatTemplate
from inference_svc.engine import Chat
from inference_svc.engines.gguf import GgufFile, Value
from sidecache.errors import SetupError

_NORMAL = 1  # tokenizer.ggml.token_type of a plain token
# What cuts a text before the merges, by tokenizer.ggml.pre.
_SPLITTERS = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
}


class GgufTokenizer:
    """Text to ids, ids to bytes, and a chat to text.

    Attributes:
        vocabulary: bytes of each id; empty for special tokens.
        fingerprint: sha256 of tokenizer.json, hex.
        files: what others need to do the same.
    """

    def __init__(self, model: GgufFile) -> None:
        tokens = [str(token) for token in model.get("tokenizer.ggml.tokens", list)]
        kinds = model.get("tokenizer.ggml.token_type", list)
        special = [kind != _NORMAL for kind in kinds]
        self._tokenizer = _build(model, tokens, special)
        named_tokens = _named_tokens(model, tokens)
        self._template = ChatTemplate(model.get("tokenizer.chat_template", str), named_tokens)
        self.vocabulary = [
            b"" if is_special else token_bytes(token)
            for token, is_special in zip(tokens, special, strict=True)
        ]
        serialized = self._tokenizer.to_str().encode()
        self.fingerprint = hashlib.sha256(serialized).hexdigest()
        self.template_fingerprint = self._template.fingerprint
        self.files = {
            "tokenizer.json": serialized,
            "chat_template.jinja": self._template.source.encode(),
            # What the template may call by name.
            "tokenizer_config.json": json.dumps(named_tokens, sort_keys=True).encode(),
        }

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template looks at tools at all."""
        return self._template.knows_tools

    def encode(self, prompt: str | Chat) -> list[int]:
        """The ids of a text as it stands, or of a chat rendered for an answer.

        Raises:
            InvalidRequest: the template refuses the chat.
        """
        text = prompt if isinstance(prompt, str) else self._template.render(prompt)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        text: str = self._tokenizer.decode(token_ids)
        return text


def _build(model: GgufFile, tokens: list[str], special: list[bool]) -> Tokenizer:
    family = model.get("tokenizer.ggml.model", str)
    splitter = model.get("tokenizer.ggml.pre", str)
    if family != "gpt2" or splitter not in _SPLITTERS:
        raise SetupError(
            f"model file {model.path} has a tokenizer of kind {family}/{splitter}; "
            f"known are {', '.join(f'gpt2/{each}' for each in _SPLITTERS)}"
        )
    merges = [_pair(str(merge)) for merge in model.get("tokenizer.ggml.merges", list)]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    unknown = model.metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=tokens[unknown] if isinstance(unknown, int) else None,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*_SPLITTERS[splitter], pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, is_special in zip(tokens, special, strict=True)
            if is_special
        ]
    )
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _named_tokens(model: GgufFile, tokens: list[str]) -> dict[str, str]:
    """What templates may call bos_token and eos_token."""
    ids: dict[str, Value | None] = {
        name: model.metadata.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")
    }
    return {name: tokens[each] for name, each in ids.items() if isinstance(each, int)}
