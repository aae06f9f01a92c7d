"""A keys file that may change while the router runs: keys come and go without a restart."""

import asyncio
import logging
from pathlib import Path

from router.auth import KeyRing, Metadata, Principal
from router.tenant_limits import TenantLimits
from sidecache.errors import SetupError

log = logging.getLogger(__name__)


class WatchedKeys:
    """The keys of a file as it was last readable.

    A bad change is reported and the old keys stay in force: an editor's slip at
    night must not lock every tenant out.

    Raises:
        SetupError: the file cannot be read at start.
    """

    def __init__(self, path: Path, interval_s: float) -> None:
        self._path = path
        self._interval_s = interval_s
        self._seen = _identity(path)
        self._ring = KeyRing.load(path)

    def authenticate(self, metadata: Metadata) -> Principal:
        return self._ring.authenticate(metadata)

    def limits_of(self, tenant: str) -> TenantLimits:
        return self._ring.limits_of(tenant)

    async def run(self) -> None:
        """Look at the file again and again until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self.refresh()

    def refresh(self) -> None:
        """Take the file's keys if it has changed and can be read."""
        seen = _identity(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._ring = KeyRing.load(self._path)
        except SetupError as error:
            log.error("the old keys stay in force: %s", error)
        else:
            log.info("keys file read again", extra={"keys": len(self._ring)})


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
