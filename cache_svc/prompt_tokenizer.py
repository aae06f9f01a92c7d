"""From a prompt to the ids its worker would make, with the files that the worker publishes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from cache_svc.segment_cache import SegmentCache
from sidecache.chat_template import ChatTemplate
from sidecache.errors import SetupError, SidecacheError
from sidecache.v1 import inference_pb2

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
BYTE_TOKENIZER_FILE = "sidecache-byte-tokenizer.json"
_BYTE_TOKENIZER = {"kind": "utf8-bytes", "chat": "role: content"}
_BYTE_TEMPLATE_FINGERPRINT = hashlib.sha256(b"role: content").hexdigest()
# What a chat template may name.
_NAMED_TOKENS = ("bos_token", "eos_token")


class TokenizerRefused(Exception):
    """The files are none that can be used, or not those that were announced."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What a worker says its tokenizer and chat template are, sha256 in hex."""

    tokenizer: str
    chat_template: str


class PromptTokenizer(Protocol):
    """Makes of a prompt exactly the ids that its worker makes of it. Thread-safe."""

    def encode_text(self, text: str, salt: str = "") -> Sequence[int]:
        """Ids of a text as it stands; nothing is kept across different salts."""

    def encode_chat(self, chat: inference_pb2.Chat, salt: str = "") -> Sequence[int]:
        """Ids of a chat, rendered for an answer.

        Raises:
            SidecacheError: the template refuses it.
        """


class ByteTokenizer:
    """One token for each byte; what the scripted engine uses."""

    def encode_text(self, text: str, salt: str = "") -> Sequence[int]:
        return list(text.encode())  # of bytes, an array would make raw items

    def encode_chat(self, chat: inference_pb2.Chat, salt: str = "") -> Sequence[int]:
        turns = [f"{turn.role}: {turn.content}\n" for turn in chat.messages]
        return list("".join([*turns, "assistant:"]).encode())


class FileTokenizer:
    """A tokenizer.json with its chat template.

    A text is cut at the tokenizer's special tokens before anything else is done with
    it, so what lies between two of them has the same ids wherever it stands. Those
    are kept: of a conversation that grows, only the new turns are tokenized.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, kept_bytes: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._segments = SegmentCache(tokenizer, kept_bytes)

    def encode_text(self, text: str, salt: str = "") -> Sequence[int]:
        return self._segments.encode(text, salt)

    def encode_chat(self, chat: inference_pb2.Chat, salt: str = "") -> Sequence[int]:
        if self._template is None:
            raise SetupError("the worker publishes no chat template")
        return self._segments.encode(self._template.render(chat.messages, chat.tools), salt)


def read_tokenizer(
    files: Mapping[str, bytes], announced: Fingerprints, kept_bytes: int = 0
) -> PromptTokenizer:
    """The tokenizer that a worker publishes.

    Args:
        files: name to content.
        announced: must be those of the files.
        kept_bytes: ids kept of recent parts of prompts.

    Raises:
        TokenizerRefused: no file that is known, a damaged one, or another than announced.
    """
    if BYTE_TOKENIZER_FILE in files:
        return _read_byte_tokenizer(files[BYTE_TOKENIZER_FILE], announced)
    content = files.get(TOKENIZER_FILE)
    if content is None:
        raise TokenizerRefused(f"no {TOKENIZER_FILE}")
    if hashlib.sha256(content).hexdigest() != announced.tokenizer:
        raise TokenizerRefused(f"{TOKENIZER_FILE} is not the one announced")
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
        raise TokenizerRefused(f"{TOKENIZER_FILE} cannot be read") from error
    # Settings of training: a prompt is neither cut nor filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FileTokenizer(tokenizer, _read_template(files, announced), kept_bytes)


def _read_byte_tokenizer(content: bytes, announced: Fingerprints) -> ByteTokenizer:
    if _read_json(content) != _BYTE_TOKENIZER:
        raise TokenizerRefused(f"{BYTE_TOKENIZER_FILE} is of an unknown kind")
    made = Fingerprints(hashlib.sha256(content).hexdigest(), _BYTE_TEMPLATE_FINGERPRINT)
    if made != announced:
        raise TokenizerRefused(f"{BYTE_TOKENIZER_FILE} is not the one announced")
    return ByteTokenizer()


def _read_template(files: Mapping[str, bytes], announced: Fingerprints) -> ChatTemplate | None:
    content = files.get(TEMPLATE_FILE)
    if content is None:
        return None
    if hashlib.sha256(content).hexdigest() != announced.chat_template:
        raise TokenizerRefused(f"{TEMPLATE_FILE} is not the one announced")
    tokens = _named_tokens(_read_json(files.get(CONFIG_FILE, b"{}")))
    try:
        return ChatTemplate(content.decode(), tokens)
    except (SidecacheError, UnicodeDecodeError) as error:
        raise TokenizerRefused(f"{TEMPLATE_FILE} cannot be read") from error


def _named_tokens(config: Any) -> dict[str, str]:
    """Tokens by the names that templates use: plain, or described as in Hugging Face's files."""
    if not isinstance(config, dict):
        raise TokenizerRefused(f"{CONFIG_FILE} is no object")
    found = {name: config.get(name) for name in _NAMED_TOKENS}
    plain = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in found.items()
    }
    return {name: token for name, token in plain.items() if isinstance(token, str)}


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise TokenizerRefused("a file is not JSON") from error
