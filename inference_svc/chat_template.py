"""A chat of the engines, rendered with the model's own template."""

from inference_svc.engine import Chat
from sidecache import chat_template


class ChatTemplate(chat_template.ChatTemplate):
    """:class:`sidecache.chat_template.ChatTemplate` over an engine's Chat."""

    def render(self, chat: Chat) -> str:  # type: ignore[override]  # the engines' own noun
        """The prompt's text.

        Raises:
            InvalidRequest: the template refuses the chat.
        """
        return super().render(chat.messages, chat.tools)
