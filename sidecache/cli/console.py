"""How the command line speaks: one voice for answers, errors and sources."""

import re
import sys

from rich.console import Console
from rich.text import Text

from sidecache import errors
from sidecache.client import Source

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_STYLES = {
    Source.ENGINE: "bold yellow",
    Source.EXACT: "bold green",
    Source.SEMANTIC: "bold cyan",
    Source.COALESCED: "bold magenta",
    Source.UNSPECIFIED: "bold red",
}
_SOURCE_WIDTH = max(len(source.name) for source in _STYLES if source)
# A model may write anything; what moves a terminal's cursor is not text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_EXIT_CODES: tuple[tuple[type[errors.SidecacheError], int], ...] = (
    (errors.InvalidRequest, 2),
    (errors.SetupError, 3),
    (errors.Unauthenticated, 4),
    (errors.Forbidden, 4),
    (errors.Unavailable, 5),
    (errors.Overloaded, 5),
    (errors.DeadlineExceeded, 5),
)


def exit_code(error: errors.SidecacheError) -> int:
    """The process's exit code for an error; 1 for those without one of their own."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def complain(text: str) -> None:
    """One line of what went wrong, to stderr."""
    err.print(Text.assemble(("error: ", "bold red"), " ".join(text.split())))


def harmless(text: str) -> str:
    """A model's text with its control characters made visible."""
    return _CONTROLS.sub("\ufffd", text)


def write_raw(text: str) -> None:
    """A piece of a model's answer, at once and without control characters."""
    sys.stdout.write(harmless(text))
    sys.stdout.flush()


def source_text(source: Source, width: int = _SOURCE_WIDTH) -> Text:
    """A source in its colour, padded so that lines align."""
    return Text(source.name.ljust(width), style=_STYLES[source])


def milliseconds(seconds: float | None) -> str:
    """A time to first token, aligned: three digits where they say something."""
    if seconds is None:
        return "     - ms"
    value = seconds * 1000
    return f"{value:6.1f} ms" if value < 1000 else f"{value:6.0f} ms"  # noqa: PLR2004  one second
