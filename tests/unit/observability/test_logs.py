import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan

from observability.logs import configure_logging, log_unhandled
from observability.settings import TelemetrySettings
from observability.tracing import parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json(stream: io.StringIO) -> None:
    """Whatever a message holds, it stays one parseable line with its level, time and extras."""
    configure_logging("sidecache-test", TelemetrySettings(), stream)
    logging.getLogger("room").info("two\nlines %s", "“quoted”", extra={"worker": "w1"})
    [line] = lines(stream)
    assert line["message"] == "two\nlines “quoted”"
    assert (line["level"], line["logger"], line["service"]) == ("INFO", "room", "sidecache-test")
    assert line["worker"] == "w1"
    assert line["time"].endswith("+00:00")
    assert "trace_id" not in line


def test_a_line_inside_a_call_names_its_trace(stream: io.StringIO) -> None:
    """Log lines of sampled and unsampled calls alike carry trace and span id."""
    configure_logging("sidecache-test", TelemetrySettings(), stream)
    caller = parse_traceparent(f"00-{TRACE}-{SPAN}-00")
    assert caller is not None
    with trace.use_span(NonRecordingSpan(caller)):
        logging.getLogger("room").warning("here")
    [line] = lines(stream)
    assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exceptions_text_is_left_out(stream: io.StringIO, log_format: Any) -> None:
    """An exception shows its type and where it passed, never what it said."""
    configure_logging("sidecache-test", TelemetrySettings(log_format=log_format), stream)
    try:
        int("canary")
    except ValueError:
        logging.getLogger("room").exception("failed")
    assert "canary" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert "test_logs.py" in stream.getvalue()


async def test_a_lost_task_does_not_quote_its_exception(stream: io.StringIO) -> None:
    """asyncio's report of an exception nobody retrieved keeps its text out as well."""
    configure_logging("sidecache-test", TelemetrySettings(), stream)
    error = ValueError("canary")
    log_unhandled(
        asyncio.get_running_loop(),
        {"message": "Task exception was never retrieved", "exception": error, "future": error},
    )
    [line] = lines(stream)
    assert line["error.type"] == "ValueError"
    assert "canary" not in stream.getvalue()


def test_levels_and_warnings(stream: io.StringIO) -> None:
    """Lines below the level are not written; Python's warnings become lines."""
    configure_logging("sidecache-test", TelemetrySettings(log_level="WARNING"), stream)
    logging.getLogger("room").info("quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("careful", stacklevel=1)
    [line] = lines(stream)
    assert line["logger"] == "py.warnings"
