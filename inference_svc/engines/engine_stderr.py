"""What an engine's processes write to standard error while it loads.

vLLM reports a failed start as "see root cause above": the cause is a line that another
process wrote. So that descriptor goes through a pipe here while processes are started;
every line is passed on at once, and the last ones are kept.
"""

import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_KEPT_LINES = 400
_MAX_LINE_CHARACTERS = 2000
_READ_BYTES = 1 << 16
# The last line of a traceback, after whatever prefix a logger has put before it.
_CAUSE = re.compile(r"(?:^|[\s\]])((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (.+)$")
_NO_CAUSE = ("See root cause above", "Failed core proc", "initialization failed")


class EngineStderr:
    """The last lines that processes started within :meth:`tapped` wrote."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """Processes started in this block write through us for as long as they live."""
        reading, writing = os.pipe()
        own = os.dup(_STDERR)
        os.dup2(writing, _STDERR)
        os.close(writing)
        # Ends by itself when the last process that has the pipe has ended.
        threading.Thread(
            target=self._pump, args=(reading, os.dup(own)), name="engine-stderr", daemon=True
        ).start()
        try:
            yield
        finally:
            os.dup2(own, _STDERR)
            os.close(own)

    def cause(self) -> str:
        """The last error that a traceback ended with; empty if there was none."""
        for line in reversed(list(self._lines)):
            found = _CAUSE.search(line)
            if found and not any(each in line for each in _NO_CAUSE):
                return f"{found[1]}: {found[2]}"
        return ""

    def _pump(self, reading: int, onward: int) -> None:
        rest = b""
        try:
            while data := os.read(reading, _READ_BYTES):
                _write_all(onward, data)
                *whole, rest = (rest + data).split(b"\n")
                self._lines.extend(_line(each) for each in whole)
                rest = rest[-_MAX_LINE_CHARACTERS:]
        except OSError:
            return  # our own standard error is closed: nobody is left to read
        finally:
            os.close(reading)
            os.close(onward)


def _line(raw: bytes) -> str:
    return raw[:_MAX_LINE_CHARACTERS].decode(errors="replace").rstrip()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
