"""A prompt to token ids without holding up the event loop."""

import asyncio
from typing import Protocol

from inference_svc.engine import Chat

# Shorter texts are tokenized faster than a thread can be woken for them.
_INLINE_CHARACTERS = 4096


class PromptEncoder(Protocol):
    """A tokenizer, as far as prompts go."""

    def encode(self, prompt: str | Chat) -> list[int]:
        """The ids of a text as it stands, or of a chat rendered for an answer."""


async def encode(tokenizer: PromptEncoder, prompt: str | Chat) -> list[int]:
    """What the tokenizer makes of a prompt; a long one on a thread.

    Raises:
        InvalidRequest: the template refuses the chat, or there is none.
    """
    if _characters(prompt) <= _INLINE_CHARACTERS:
        return tokenizer.encode(prompt)
    return await asyncio.to_thread(tokenizer.encode, prompt)


def _characters(prompt: str | Chat) -> int:
    """About how much there is to encode; a template adds little to it."""
    if isinstance(prompt, str):
        return len(prompt)
    turns = sum(len(turn.content) for turn in prompt.messages)
    tools = sum(len(tool.description) + len(tool.parameters_json_schema) for tool in prompt.tools)
    return turns + tools
