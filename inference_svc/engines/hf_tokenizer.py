"""The tokenizer and chat template in a checkpoint folder of Hugging Face's form."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inference_svc.byte_level import ByteLevelDecoder, token_bytes
from inference_svc.chat_template import ChatTemplate
from inference_svc.choice import TextDecoder
from inference_svc.engine import Chat
from sidecache.errors import InvalidRequest, SetupError

_REPLACEMENT = "\ufffd"
# Bytes of a character that ids may still have to complete.
_LONGEST_CHARACTER = 4


class HfTokenizer:
    """Text to ids, ids to text, and a chat to text.

    Args:
        folder: holds tokenizer.json and, for chats, a template in chat_template.jinja or
            tokenizer_config.json.

    Attributes:
        fingerprint: sha256 of tokenizer.json, hex.
        template_fingerprint: sha256 of the template, hex; empty without one.
        files: what others need to do the same.
        size: number of ids.

    Raises:
        SetupError: a file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            serialized = path.read_bytes()
            self._tokenizer: Tokenizer = Tokenizer.from_buffer(serialized)
            decoder = json.loads(serialized).get("decoder")
        except Exception as error:  # the library raises bare Exceptions
            raise SetupError(
                f"{path} cannot be used as a tokenizer ({error}); the checkpoint folder must "
                "hold a tokenizer.json"
            ) from error
        # Prompts of any length are counted, never cut.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._bytes = self._byte_level(decoder)
        self._template = _template(folder)
        self.fingerprint = hashlib.sha256(serialized).hexdigest()
        self.template_fingerprint = self._template.fingerprint if self._template else ""
        self.files = {"tokenizer.json": serialized}
        if self._template:
            self.files["chat_template.jinja"] = self._template.source.encode()

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template looks at tools at all."""
        return self._template is not None and self._template.knows_tools

    def encode(self, prompt: str | Chat) -> list[int]:
        """The ids of a text as it stands, or of a chat rendered for an answer.

        Raises:
            InvalidRequest: the template refuses the chat, or there is none.
        """
        text = prompt if isinstance(prompt, str) else self._render(prompt)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids))
        return text

    def decoder(self) -> TextDecoder:
        """A fresh one, for one choice."""
        if self._bytes is not None:
            return ByteLevelDecoder(self._bytes)
        return WindowDecoder(self)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def _render(self, chat: Chat) -> str:
        if self._template is None:
            raise InvalidRequest("the model has no chat template: send text", field="chat")
        return self._template.render(chat)

    def _byte_level(self, decoder: dict[str, Any] | None) -> list[bytes] | None:
        """Bytes of each id, empty for special ones; None for another kind of vocabulary."""
        if not decoder or decoder.get("type") != "ByteLevel":
            return None
        special = {
            token_id
            for token_id, added in self._tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        vocabulary = [b""] * self.size
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id not in special:
                try:
                    vocabulary[token_id] = token_bytes(token)
                except KeyError:  # an added token, written as it reads
                    vocabulary[token_id] = token.encode()
        return vocabulary


class WindowDecoder:
    """Text of one growing sequence of a vocabulary that is not byte-level.

    Such a token's text may depend on the ones before it (a leading space, bytes that make up
    a character), so the last few are decoded again with each new one.
    """

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids before this one are not decoded any more
        self._told = 0  # ids whose text was given

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids make readable."""
        return "".join([self._push(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """What an unfinished character leaves when nothing follows."""
        return self._new_text()

    def _push(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._told < _LONGEST_CHARACTER:
            return ""
        self._context, self._told = self._told, len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._told])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]


def _template(folder: Path) -> ChatTemplate | None:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if path.exists():
        try:
            config = json.loads(path.read_bytes())
        except ValueError as error:
            raise SetupError(f"{path} is not JSON: {error}") from error
    named = {
        name: value if isinstance(value, str) else str(value.get("content", ""))
        for name in ("bos_token", "eos_token")
        if (value := config.get(name)) is not None
    }
    separate = folder / "chat_template.jinja"
    source = separate.read_text() if separate.exists() else config.get("chat_template")
    if isinstance(source, list):  # several templates by name
        source = next((each["template"] for each in source if each["name"] == "default"), None)
    return ChatTemplate(source, named) if source else None
