"""A service's log file: bounded, and readable when the service has died."""

import json
import shutil
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 16 << 20
_TAIL_BYTES = 16_384
_SEVERE = {"ERROR", "CRITICAL", "FATAL"}


class ServiceLog:
    """One file that a service appends to; the one before it is kept as ``.1``.

    Args:
        path: the file; its folder exists.
        max_bytes: beyond this it is moved aside by :meth:`rotate_if_large`, so
            two files of this size are the most that one service takes.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._opened = False
        # Where the words of the latest start begin.
        self._begins_at = 0

    def open(self) -> BinaryIO:
        """The file, for a service that starts; what a former fleet wrote moves to ``.1``."""
        if not self._opened and self.path.exists():
            self.path.replace(self._previous)
        self._opened = True
        self.path.touch(mode=0o600)
        self._begins_at = self.path.stat().st_size
        return self.path.open("ab")

    def rotate_if_large(self) -> None:
        """Copy and truncate: the service holds the file open and goes on writing to it."""
        if self.path.exists() and self.path.stat().st_size > self._max_bytes:
            shutil.copyfile(self.path, self._previous)
            with self.path.open("ab") as file:
                file.truncate(0)
            self._begins_at = 0

    def last_words(self) -> str:
        """Why the latest start ended, as far as it said: empty if it never complained.

        The last error that it logged, or else the last line that no logger wrote:
        the end of a traceback, a refused setting, what the C library says on abort.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(max(self._begins_at, self.path.stat().st_size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        complaints = [words for words in map(_complaint, lines) if words]
        return complaints[-1] if complaints else ""

    @property
    def _previous(self) -> Path:
        return self.path.with_name(self.path.name + ".1")


def _complaint(line: str) -> str:
    """What a line complains of; empty for an ordinary log line."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    if str(record.get("level", "")).upper() not in _SEVERE:
        return ""
    message = str(record.get("message", line))
    return f"{message} ({kind})" if (kind := record.get("error.type")) else message
