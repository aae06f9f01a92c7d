"""The installed release."""

from importlib import metadata


def version() -> str:
    """The release's version; ``0+source`` where it runs from a tree that is not installed."""
    try:
        return metadata.version("sidecache")
    except metadata.PackageNotFoundError:
        return "0+source"
