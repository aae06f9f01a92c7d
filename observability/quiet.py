"""Keeping dependencies from phoning home."""

import sys

from sidecache.errors import BrokenInvariant

_REPORTER = "openvino_telemetry"


def silence_openvino() -> None:
    """Make `import openvino` send nothing and write nothing; call before that import.

    Importing openvino (openvino_genai does too) imports its model converter, which
    at once reports "import" to Google Analytics through the package
    openvino_telemetry: it is opt-out, forks a process that posts the event, and
    keeps a client id under ~/intel. Its switches are a consent file in the user's
    home and, only in CI, an environment variable.

    openvino itself carries a stub for when that package cannot be imported; a None
    in sys.modules makes the import fail, so that stub is what it uses. Holds for
    this process alone: each process that imports openvino has to call it.

    Raises:
        BrokenInvariant: openvino_telemetry is already imported, so it is too late.
    """
    if sys.modules.get(_REPORTER) is not None:
        raise BrokenInvariant(
            f"{_REPORTER} is already imported: call silence_openvino() before openvino is imported"
        )
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # how Python bars an import
