"""`sidecache version`."""

import platform

from sidecache.cli.console import out
from sidecache.version import version


def show_version() -> None:
    """Print the release, and the Python it runs on."""
    out.print(f"sidecache {version()} (Python {platform.python_version()}, {platform.machine()})")
