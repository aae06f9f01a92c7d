"""Long prompts are tokenized off the event loop, short ones on it."""

import threading

import pytest

from inference_svc.engine import Chat, ChatMessage, Tool
from inference_svc.tokenizing import encode

LONG = "x" * 5000


class Noting:
    """Notes which thread asked it."""

    def __init__(self) -> None:
        self.thread: int | None = None

    def encode(self, prompt: str | Chat) -> list[int]:
        self.thread = threading.get_ident()
        return [len(str(prompt))]


@pytest.mark.parametrize(
    ("prompt", "inline"),
    [
        ("short", True),
        (LONG, False),
        (Chat((ChatMessage("user", "short"),)), True),
        (Chat((ChatMessage("user", "short"), ChatMessage("user", LONG))), False),
        (Chat((ChatMessage("user", "short"),), (Tool("f", "", LONG),)), False),
        (Chat((ChatMessage("user", "short"),), (Tool("f", LONG, "{}"),)), False),
    ],
)
async def test_only_short_prompts_hold_up_the_loop(prompt: str | Chat, inline: bool) -> None:
    """Tools count as much as turns."""
    tokenizer = Noting()
    assert await encode(tokenizer, prompt) == [len(str(prompt))]
    assert (tokenizer.thread == threading.get_ident()) is inline
