"""New settings for a service that runs: read again at SIGHUP, or when their file changes.

What is bad leaves everything as it was, with a line for each fault: a slip of an
operator's must not end a service.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from observability.configuration import BadConfiguration
from sidecache.errors import SetupError

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0


class Reloading:
    """Reads and applies settings again.

    Args:
        read: the settings as they would be now; raises BadConfiguration.
        file: whose changes are noticed; None: only a call of :meth:`reload` counts.
        interval_s: between two looks at it.

    Made before the settings are read for the first time, or a change between would be missed.

    Attributes:
        apply: takes new settings, whole or not at all; raises SetupError. None: the service
            cannot change while it runs.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        file: Path | None,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._read = read
        self.apply: Callable[[Any], None] | None = None
        self._file = file
        self._interval_s = interval_s
        self._seen = _identity(file)

    def reload(self) -> bool:
        """Take the settings as they are now; whether they are in force."""
        if self.apply is None:
            log.warning("this service reads its settings once; restart it to change them")
            return False
        try:
            self.apply(self._read())
        except BadConfiguration as error:
            for line in error.lines:
                log.error("the old settings stay: %s", line)
            return False
        except SetupError as error:
            log.error("the old settings stay: %s", error.text)
            return False
        log.info("the settings were read again")
        return True

    async def watch(self) -> None:
        """Reload when the file has changed, until cancelled."""
        while self._file is not None and self.apply is not None:
            await asyncio.sleep(self._interval_s)
            seen = _identity(self._file)
            # A file that is gone for a moment is being replaced.
            if seen is not None and seen != self._seen:
                self._seen = seen
                self.reload()


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = path.stat() if path is not None else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else None
