"""The tokenizer and chat template of a Hugging Face checkpoint folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders

from inference_svc.byte_level import ByteLevelDecoder, token_bytes
from inference_svc.chat_template import ChatTemplate
from inference_svc.choice import TextDecoder
from inference_svc.engine import Chat
from sidecache.errors import SetupError

# Without a template of its own a model still takes a chat: one turn a line.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)
_UNFINISHED = "\ufffd"


class HfTokenizer:
    """Text to ids, ids to text, and a chat to text.

    Args:
        folder: with tokenizer.json, and the chat template in chat_template.jinja or
            tokenizer_config.json.
        vocabulary_size: ids the model may give; those beyond the tokenizer's have no text.

    Attributes:
        fingerprint: sha256 of tokenizer.json, hex.
        files: what others need to do the same.

    Raises:
        SetupError: a file is missing or damaged; names it.
    """

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        serialized = _read(folder / "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_buffer(serialized)
        except Exception as error:  # the library raises bare Exceptions
            raise SetupError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
        config = _config(folder)
        source = _template(folder, config)
        self.has_template = bool(source)
        self._template = ChatTemplate(source or _PLAIN_TEMPLATE, _named_tokens(config))
        self._byte_level = isinstance(self._tokenizer.decoder, decoders.ByteLevel)
        self._vocabulary = self._bytes(vocabulary_size) if self._byte_level else []
        self.fingerprint = hashlib.sha256(serialized).hexdigest()
        self.template_fingerprint = self._template.fingerprint
        self.files = {
            "tokenizer.json": serialized,
            "chat_template.jinja": self._template.source.encode(),
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

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids))
        return text

    def decoder(self) -> TextDecoder:
        """A fresh decoder for one growing sequence."""
        if self._byte_level:
            return ByteLevelDecoder(self._vocabulary)
        return _WindowDecoder(self._tokenizer)

    def _bytes(self, size: int) -> list[bytes]:
        """The bytes of each id; special tokens and ids beyond the tokenizer's have none."""
        special = {
            token_id
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        return [
            b"" if token_id in special else _token_bytes(self._tokenizer.id_to_token(token_id))
            for token_id in range(max(size, self._tokenizer.get_vocab_size()))
        ]


class _WindowDecoder:
    """Text of a growing sequence for any tokenizer: decode a window, take what is new.

    The window begins where the last readable text began, so what a token's neighbours
    do to it (spaces, byte fallback) is seen. Source: Text Generation Inference's and
    vLLM's incremental detokenization.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0
        self._read_to = 0

    def push(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token_id in token_ids:
            self._ids.append(token_id)
            text += self._advance(final=False)
        return text

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before: str = self._tokenizer.decode(self._ids[self._window : self._read_to])
        now: str = self._tokenizer.decode(self._ids[self._window :])
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not final):
            return ""
        self._ids = self._ids[self._read_to :] if self._read_to else self._ids
        self._window, self._read_to = 0, len(self._ids)
        return now[len(before) :]


def _token_bytes(token: str | None) -> bytes:
    if token is None:
        return b""
    try:
        return token_bytes(token)
    except KeyError:
        return token.encode()  # an added token stands as it is written


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template's source; empty if the model has none."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return _read(beside).decode()
    given = config.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = {each.get("name"): each.get("template") for each in given}.get("default")
    return given if isinstance(given, str) else ""


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """What templates may call bos_token and eos_token."""
    named = {}
    for name in ("bos_token", "eos_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
