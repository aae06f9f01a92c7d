"""Whether a request's LoRA adapter is one that this worker has."""

from collections.abc import Collection

from sidecache.errors import NotFound


def check_adapter(name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known; the empty name asks for none.

    Raises:
        NotFound: it is not known.
    """
    if name and name not in known:
        raise NotFound(
            f"adapter {name!r} is not known; this worker has {', '.join(known) or 'none'}",
            kind="adapter",
            name=name,
        )
