"""Fetch one wheel through pip, as this interpreter's operator has configured it.

pip knows the index, the mirror, the proxy and the certificates; Sidecache holds
no address. The wheel is downloaded, never installed and never imported, and a
source distribution is refused, since building one would run its code.
"""

import errno
import importlib.util
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from sidecache.errors import SetupError

# pip gives up on a dead connection by itself, but after its own retries; this
# bounds the silence of a pip that hangs in any other way.
STALL_S = 300.0
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_FIRST_PIP_WITH_RAW = (24, 1)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 65_536

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""


def download_wheel(
    requirement: str, folder: Path, progress: Progress | None = None, stall_s: float = STALL_S
) -> Path:
    """Download the wheel of ``requirement`` into ``folder``, which must be empty.

    Args:
        requirement: a pinned one, ``name==version``.
        folder: also pip's scratch space, so that one disk check covers both.
        progress: told how far the download is.
        stall_s: the longest silence of pip that is waited for.

    Raises:
        SetupError: pip is missing, cannot reach its index, or ran out of disk.
    """
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            f"cannot fetch {requirement}: {sys.executable} has no pip; "
            "run `python -m ensurepip`, or use an environment that has pip"
        )
    environment = os.environ | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", f"--progress-bar={_progress_bar()}"]
    command += [f"--dest={folder}", requirement]
    pip = subprocess.Popen(  # noqa: S603  the command is ours; no shell
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said: list[str] = []
    try:
        for line in _lines(pip, stall_s, requirement):
            if (found := _PROGRESS.match(line)) is None:
                said.append(line)
            elif progress is not None:
                progress(int(found[1]), int(found[2]))
        exit_code = pip.wait(stall_s)
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
        if pip.stdout is not None:
            pip.stdout.close()
    wheels = sorted(folder.glob("*.whl"))
    if exit_code != 0 or not wheels:
        raise _failure(requirement, said)
    return wheels[0]


def _progress_bar() -> str:
    """The bar that is made for machines; a pip older than 24.1 has none, and stays silent."""
    major, minor = (int(part) for part in metadata.version("pip").split(".")[:2])
    return "raw" if (major, minor) >= _FIRST_PIP_WITH_RAW else "off"


def _lines(pip: "subprocess.Popen[bytes]", stall_s: float, requirement: str) -> Iterator[str]:
    """What pip says, line by line, as it says it."""
    if pip.stdout is None:
        return
    pipe = pip.stdout.fileno()
    rest = b""
    deadline = time.monotonic() + stall_s
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SetupError(
                f"cannot fetch {requirement}: pip said nothing for {stall_s:g} s; "
                "check the network and pip's settings (`python -m pip config list`)"
            )
        chunk = os.read(pipe, _READ_BYTES)
        if not chunk:
            break
        deadline = time.monotonic() + stall_s
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _failure(requirement: str, said: list[str]) -> SetupError:
    """The one line of pip's output that names the cause, with what to do about it."""
    text = "\n".join(said)
    if any(os.strerror(number) in text for number in DISK_FULL):
        return SetupError(f"cannot fetch {requirement}: the disk is full; free some space")
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    # An error of pip's own code is "ERROR: Exception:" and a traceback.
    said_last = [line for line in said if line.strip()][-1:]
    last = (said_last if errors == ["Exception:"] else errors[-1:] or said_last or [""])[0]
    return SetupError(
        f"cannot fetch {requirement} with pip: {last or 'pip failed without a word'}; "
        "check the network and pip's settings (`python -m pip config list`)"
    )
