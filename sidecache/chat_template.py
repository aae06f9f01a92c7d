"""A model's own chat template, rendered alike by a worker and by whoever tokenizes for it.

The template comes out of a model file, so it is foreign code: it runs in
Jinja's sandbox, as in every library that renders such templates.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sidecache.errors import InvalidRequest, SetupError


class Message(Protocol):
    """One turn."""

    @property
    def role(self) -> str:
        """One of system, user, assistant, tool."""

    @property
    def content(self) -> str:
        """What was said."""


class Tool(Protocol):
    """A function the model may call."""

    @property
    def name(self) -> str:
        """What the model calls it."""

    @property
    def description(self) -> str:
        """What it does."""

    @property
    def parameters_json_schema(self) -> str:
        """Its arguments."""


class ChatTemplate:
    """Renders a conversation up to the point where the answer begins.

    Args:
        source: Jinja, as model files carry it.
        named_tokens: bos_token and eos_token, as far as the model has them.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source, globals=dict(named_tokens))
            variables = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise SetupError(f"the model's chat template is broken: {error}") from error
        self.source = source
        self.fingerprint = hashlib.sha256(source.encode()).hexdigest()
        self.knows_tools = "tools" in variables

    def render(self, messages: Iterable[Message], tools: Iterable[Tool] = ()) -> str:
        """The prompt's text.

        Raises:
            InvalidRequest: the template refuses the chat.
        """
        try:
            return self._template.render(
                messages=[{"role": turn.role, "content": turn.content} for turn in messages],
                tools=[_tool(each) for each in tools] or None,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses it: {error}", field="chat.messages"
            ) from error


def _tool(tool: Tool) -> dict[str, Any]:
    """A tool as templates expect it: OpenAI's form."""
    try:
        parameters = json.loads(tool.parameters_json_schema or "{}")
    except ValueError as error:
        raise InvalidRequest(f"is not JSON: {error}", field="chat.tools") from error
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _refuse(text: str) -> NoReturn:
    raise TemplateError(text)


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own escapes for HTML, which a model was not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)
