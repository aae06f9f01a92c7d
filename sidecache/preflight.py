"""What `make run` checks before it starts: one line for each thing that is missing.

Runs on the standard library alone, under whatever `python3` is: it must parse
and run on Python 3.6, so that an old interpreter gets a clear line instead of a
syntax error. Prints its findings to stderr, and to stdout the one interpreter
to go on with.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
CANDIDATES = (sys.executable, "python3.13", "python3.12", "python3.11")
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
# The embedded stack 0.7 GB, pip's downloads of it 0.4 GB, weights 0.25 GB while
# they are fetched; the rest is room for logs and the cache.
FRESH_DISK_GB = 2.5
INSTALLED_DISK_GB = 0.3
MEMORY_GB = 3.0
PROBE_S = 20
PORT_STEP = 100
LOWEST_SUGGESTED = 7100
HIGHEST_PORT = 65535
# What the interpreter must be able to do, asked of the interpreter itself.
PROBE = "import sys, ensurepip, venv; print('%d.%d.%d' % sys.version_info[:3])"


class Missing(Exception):
    """Something is not there; the text says what to do about it."""


def find_python(candidates: "tuple[str, ...]" = CANDIDATES) -> "tuple[str, str]":
    """The first interpreter that can make the environment, and its version.

    Raises:
        Missing: none is new enough, or it has no venv.
    """
    without_venv = ""
    for candidate in candidates:
        path = shutil.which(candidate)
        version = _ask(path, "import sys; print('%d.%d.%d' % sys.version_info[:3])")
        if path is None or not version or _parts(version) < OLDEST:
            continue
        if _ask(path, PROBE):
            return path, version
        without_venv = without_venv or f"{path} ({version})"
    if without_venv:
        raise Missing(
            f"{without_venv} has no venv with pip: install it "
            "(Debian, Ubuntu: apt install python3-venv)"
        )
    raise Missing(
        f"Python 3.11 or newer is needed; this one is {platform.python_version()} and no "
        "python3.11, python3.12 or python3.13 works here: install one, or name it: "
        "make run PYTHON=/path/to/python3"
    )


def check_platform(system: str, machine: str) -> str:
    """What this machine is.

    Raises:
        Missing: there are no wheels for it.
    """
    name = f"{system} {machine}"
    if (system, machine) not in PLATFORMS:
        raise Missing(
            f"{name} is not supported: the engine has wheels for Linux on x86_64 and aarch64, "
            "and for macOS on arm64"
        )
    if system == "Linux" and platform.libc_ver()[0] != "glibc":
        raise Missing(f"{name} without glibc has no wheels: use a glibc distribution")
    return name + (" (not tested there)" if system == "Darwin" else "")


def check_disk(folder: Path, needed_gb: float) -> str:
    """Room where the environment will lie.

    Raises:
        Missing: too little.
    """
    free_gb = shutil.disk_usage(str(folder)).free / 1e9
    if free_gb < needed_gb:
        raise Missing(
            f"{needed_gb:.1f} GB of disk are needed and {folder} has {free_gb:.1f} GB free: "
            "free some space"
        )
    return f"{free_gb:.0f} GB of disk free"


def check_memory(total_bytes: float, needed_gb: float = MEMORY_GB) -> str:
    """Memory of this machine, or of the container it is.

    Raises:
        Missing: too little.
    """
    total_gb = total_bytes / 1e9
    if total_gb < needed_gb:
        raise Missing(
            f"{needed_gb:.0f} GB of memory are needed and there are {total_gb:.1f} GB: "
            "use a larger machine, or raise the container's limit"
        )
    return f"{total_gb:.0f} GB of memory"


def memory_bytes() -> float:
    """The least of the machine's memory and the limits of its control group."""
    found = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(limit).read_text()))
        except (OSError, ValueError):
            # No such limit, or the word "max".
            continue
    return min(found)


def check_ports(port: int, home: Path) -> str:
    """The router's port and the worker's after it.

    Raises:
        Missing: one is busy; says whether Sidecache itself holds it.
    """
    if not 0 < port < HIGHEST_PORT:
        raise Missing(f"port {port} is none: PORT may be 1 to {HIGHEST_PORT - 1}")
    for busy in (port, port + 1):
        if _is_free(busy):
            continue
        others = range(LOWEST_SUGGESTED + port % PORT_STEP, HIGHEST_PORT, PORT_STEP)
        other = next((p for p in others if _is_free(p) and _is_free(p + 1)), 0)
        pid = _own_pid(busy, home)
        if pid:
            raise Missing(
                f"port {busy} is busy: Sidecache already runs here (pid {pid}). Talk to it with "
                f"`.venv/bin/sidecache chat`, stop it with `kill {pid}`, or start another one with "
                f"`make run PORT={other}`"
            )
        raise Missing(
            f"port {busy} is busy: another program holds it. Stop that, or choose other ports with "
            f"`make run PORT={other}`"
        )
    return f"ports {port} and {port + 1} free"


def sidecache_home() -> Path:
    """Where Sidecache keeps its weights and its running state (as sidecache.weights says)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("SIDECACHE_HOME") or os.path.join(cache, "sidecache")  # noqa: PTH118  "~" stays
    return Path(home).expanduser()


def main(arguments: "list[str]") -> int:
    """Check everything, print every miss, and the interpreter if there is none."""
    parser = argparse.ArgumentParser(description="Check what `make run` needs.")
    parser.add_argument("--port", type=int, default=7070)
    parser.add_argument("--no-ports", action="store_true", help="nothing will be served")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    installed = (root / ".venv" / "installed.json").exists()
    python = []

    def interpreter() -> str:
        path, version = find_python()
        python.append(path)
        return f"Python {version} ({path})"

    missing = 0
    for check in (
        interpreter,
        lambda: check_platform(platform.system(), platform.machine()),
        lambda: check_disk(root, INSTALLED_DISK_GB if installed else FRESH_DISK_GB),
        lambda: check_memory(memory_bytes()),
        lambda: "" if options.no_ports else check_ports(options.port, sidecache_home()),
    ):
        try:
            found = check()
            if found:
                sys.stderr.write(f"ok       {found}\n")
        except Missing as what:
            missing += 1
            sys.stderr.write(f"MISSING  {what}\n")
    if not missing:
        sys.stdout.write(python[0] + "\n")
    return 1 if missing else 0


def _ask(path: "str | None", code: str) -> str:
    """What an interpreter prints; empty if it cannot run that."""
    if path is None:
        return ""
    try:
        said = subprocess.check_output(  # noqa: S603  an interpreter off the PATH
            [path, "-c", code], stderr=subprocess.DEVNULL, timeout=PROBE_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.decode("ascii", "replace").strip()


def _parts(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in version.split("."))


def _is_free(port: int) -> bool:
    probe = socket.socket()
    try:
        # As the servers do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        return False
    finally:
        probe.close()
    return True


def _own_pid(port: int, home: Path) -> int:
    """The `sidecache up` that holds a port, by the notes it leaves; 0 if none does."""
    for note in (home / "run").glob("*/up.json"):
        try:
            found = json.loads(note.read_text())
            if port in found["ports"]:
                # Signal 0 asks whether the process exists.
                os.kill(found["pid"], 0)
                return int(found["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            # Unreadable, or left behind by a run that was killed.
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
