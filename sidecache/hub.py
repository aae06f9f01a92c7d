"""Weights from the Hugging Face hub, for those who have one: the extra ``[hub]``."""

import re
from pathlib import Path

from sidecache.errors import InvalidRequest, SetupError

HUB_PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def pull_from_hub(name: str) -> Path:
    """Fetch a whole repository through huggingface_hub, into that library's own cache.

    Args:
        name: ``hf:ORG/NAME``, or ``hf:ORG/NAME@REVISION`` to pin one.

    Raises:
        InvalidRequest: not such a name.
        SetupError: the library is missing, or the hub did not give it.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidRequest(f"{name!r} is not hf:ORG/NAME or hf:ORG/NAME@REVISION", field="name")
    try:
        # Only who asks for a hub pays for its import.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(
            f"{name} needs huggingface_hub: run `pip install 'sidecache[hub]'`"
        ) from error
    try:
        return Path(snapshot_download(match["repo"], revision=match["revision"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise SetupError(f"the hub did not give {name}: {first_line}") from error
