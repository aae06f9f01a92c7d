"""Logs: one JSON object a line, with the trace it belongs to, and never content."""

import asyncio
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from observability.settings import TelemetrySettings
from observability.tracing import current_span_context

# What logging puts on every record; the rest came in through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "message",
    "taskName",
    "service",
    "trace_id",
    "span_id",
}


def configure_logging(
    service: str, settings: TelemetrySettings, stream: TextIO | None = None
) -> None:
    """Send this process's logs and warnings to one stream.

    Args:
        service: written into each line.
        settings: level and format.
        stream: stderr unless given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    json_lines = settings.log_format == "json"
    handler.setFormatter(JsonFormatter(service) if json_lines else ConsoleFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


class JsonFormatter(logging.Formatter):
    """One record as one line of JSON.

    Keys: time (UTC), level, logger, service, message; trace_id and span_id inside
    a call; error.type and error.stack for an exception; then the `extra` given to
    the logging call. An exception's text is left out, since it may quote a
    prompt: its type and the frames it passed are what a developer needs.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        line |= _trace_ids()
        if record.exc_info and record.exc_info[0] is not None:
            line["error.type"] = record.exc_info[0].__qualname__
            line["error.stack"] = stack_of(record.exc_info[2])
        line |= _extra(record)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone()
        parts = [f"{time:%H:%M:%S} {record.levelname:<7} {record.name}: {record.getMessage()}"]
        parts += [f"{key}={value}" for key, value in _extra(record).items()]
        parts += [f"trace={ids['trace_id']}" for ids in (_trace_ids(),) if ids]
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(record.exc_info[0].__qualname__)
            parts += [f"\n  {frame}" for frame in stack_of(record.exc_info[2])]
        return " ".join(parts)


def stack_of(trace: TracebackType | None) -> list[str]:
    """Where an exception passed, outermost first, as "file:line function"."""
    return [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)
    ]


def log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler that keeps the exception's text out.

    asyncio's own prints the future's repr, which holds it.
    """
    logging.getLogger("asyncio").error("%s", context["message"], exc_info=context.get("exception"))


def _trace_ids() -> dict[str, str]:
    context = current_span_context()
    if not context.trace_id:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
