"""Make the project's own environment: ``python sidecache/install.py [EXTRA…]``.

Standard library only. Makes ``.venv`` beside pyproject.toml and installs the
project into it, editable: a change of the sources needs no second install. A
note of what was installed makes the next call return at once; a changed
pyproject.toml, or an extra that is not there yet, is installed.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
NOTE = ENVIRONMENT / "installed.json"
LOG = ENVIRONMENT / "install.log"
# The first pip with a progress bar made for machines.
OLDEST_PIP = "24.1"
_LARGE_BYTES = 5_000_000

_DOWNLOADING = re.compile(r"\s*Downloading (?P<file>\S+)")
_PROGRESS = re.compile(r"Progress (?P<done>\d+) of (?P<total>\d+)")
_INSTALLING = re.compile(r"Installing collected packages: (?P<names>.*)")


class Note(TypedDict):
    """What is written down about an environment that was installed."""

    extras: list[str]
    sources: list[str]


class Display:
    """Progress with the seconds that have passed: one line that changes, or plain lines."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def show(self, text: str, *, lasting: bool = True) -> None:
        """Show a line; without a terminal, only those that last and are new.

        Args:
            text: what happens.
            lasting: False for one that the next will replace.
        """
        if self._terminal:
            end = "\n" if lasting else ""
            sys.stderr.write(f"\r\x1b[2K{self._stamp()}  {text}{end}")
        elif lasting and text != self._last:
            sys.stderr.write(f"{self._stamp()}  {text}\n")
            self._last = text
        sys.stderr.flush()

    def _stamp(self) -> str:
        return f"{time.monotonic() - self._began:4.0f} s"


def main(extras: Sequence[str]) -> int:
    """Install what is not installed yet; the exit code."""
    noted = _noted()
    if noted and set(extras) <= set(noted["extras"]) and noted["sources"] == _sources():
        return 0
    # What was asked for before stays: `make run` does not take away what `make test` needs.
    extras = sorted({*extras, *(noted["extras"] if noted else ())})
    display = Display()
    NOTE.unlink(missing_ok=True)
    target = f".[{','.join(extras)}]" if extras else "."
    steps = (
        ("making .venv", [sys.executable, "-m", "venv", str(ENVIRONMENT)]),
        ("looking at pip", [*_pip("install"), f"pip>={OLDEST_PIP}"]),
        (f"installing {target}", [*_pip("install"), "--progress-bar=raw", "--editable", target]),
    )
    said: list[str] = []
    for title, command in steps:
        display.show(title)
        code, said = _run(command, display)
        if code != 0:
            display.show(f"{title} failed: {_cause(said)}")
            sys.stderr.write(f"        all of it is in {LOG}\n" if LOG.exists() else "")
            return 1
    note: Note = {"extras": list(extras), "sources": _sources()}
    NOTE.write_text(json.dumps(note))
    display.show("installed")
    return 0


def _sources() -> list[str]:
    """What an environment was made from: this folder, and these dependencies."""
    return [str(ROOT), hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()]


def _noted() -> Note | None:
    """What the environment holds; None if there is none that works."""
    try:
        noted: Note = json.loads(NOTE.read_text())
        # An environment whose interpreter was removed is none.
        subprocess.run([PYTHON, "-c", ""], check=True, capture_output=True)  # noqa: S603  ours
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return noted


def _pip(command: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", command, "--disable-pip-version-check", "--no-input"]


def _run(command: Sequence[str], display: Display) -> tuple[int, list[str]]:
    """Run one step, showing what it fetches; its exit code and all it said."""
    said: list[str] = []
    file = ""
    with subprocess.Popen(  # noqa: S603  the command is ours; no shell
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            if progress := _PROGRESS.match(line):
                _show_progress(display, file, int(progress["done"]), int(progress["total"]))
                continue
            said.append(line)
            if downloading := _DOWNLOADING.match(line):
                file = downloading["file"].rpartition("/")[2]
            elif installing := _INSTALLING.match(line):
                count = len(installing["names"].split(","))
                display.show(f"unpacking {count} package{'s' if count > 1 else ''}")
    if LOG.parent.exists():
        with LOG.open("a") as log:
            log.writelines(said)
    return process.returncode, said


def _show_progress(display: Display, file: str, done: int, total: int) -> None:
    name = "-".join(file.split("-")[:2])
    display.show(
        f"fetching {name}  {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        if done < total
        else f"fetched {name}  {total / 1e6:.0f} MB",
        lasting=done >= total >= _LARGE_BYTES,
    )


def _cause(said: Sequence[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR:")]
    return (errors or list(said) or ["it said nothing"])[-1].strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
