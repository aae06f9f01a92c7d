"""`make run` says in one line each what a machine lacks, under any Python 3."""

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecache import preflight

SCRIPT = Path(preflight.__file__)


def test_an_old_interpreter_can_read_it() -> None:
    """Python 3.6 parses the script, so that it gets a line and not a syntax error."""
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def fake_python(folder: Path, name: str, version: str, *, venv: bool = True) -> None:
    """An interpreter that answers the two questions that preflight asks."""
    answer = (
        f"echo {version}" if venv else f'case "$2" in *venv*) exit 1;; *) echo {version};; esac'
    )
    (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_a_newer_python_on_the_path_is_found(path: Path) -> None:
    """Where `python3` is too old, python3.12 beside it is used."""
    fake_python(path, "old", "3.9.18")
    fake_python(path, "broken", "")
    fake_python(path, "new", "3.12.1")
    found = preflight.find_python(("old", "broken", "absent", "new"))
    assert found == (str(path / "new"), "3.12.1")


def test_no_python_new_enough_says_so(path: Path) -> None:
    """The line names the version that is needed and how to name another."""
    fake_python(path, "old", "3.10.13")
    with pytest.raises(preflight.Missing, match=r"3\.11 or newer.*PYTHON="):
        preflight.find_python(("old",))


def test_python_without_venv_says_what_to_install(path: Path) -> None:
    """Debian's python3 without python3-venv is the usual case."""
    fake_python(path, "bare", "3.11.2", venv=False)
    with pytest.raises(preflight.Missing, match="apt install python3-venv"):
        preflight.find_python(("bare",))


def test_platform_disk_and_memory(tmp_path: Path) -> None:
    """Each miss says how much there is and how much is needed."""
    with pytest.raises(preflight.Missing, match="Linux riscv64 is not supported"):
        preflight.check_platform("Linux", "riscv64")
    assert "not tested" in preflight.check_platform("Darwin", "arm64")
    with pytest.raises(preflight.Missing, match="GB free"):
        preflight.check_disk(tmp_path, 1e9)
    with pytest.raises(preflight.Missing, match=r"there are 2\.1 GB"):
        preflight.check_memory(2.1e9)
    assert preflight.check_memory(preflight.memory_bytes(), 0.1)


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that a foreign program listens on; the one before it is free."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_busy_port_is_told_apart(listening: int, tmp_path: Path) -> None:
    """A foreign program and a running Sidecache get different lines, both with a way out."""
    with pytest.raises(preflight.Missing, match=rf"{listening} is busy: another.*PORT=\d+"):
        preflight.check_ports(listening - 1, tmp_path)
    note = tmp_path / "run" / "7070" / "up.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"pid": os.getpid(), "ports": [listening - 1, listening]}))
    with pytest.raises(preflight.Missing, match=rf"already runs here \(pid {os.getpid()}\)"):
        preflight.check_ports(listening - 1, tmp_path)
    with pytest.raises(preflight.Missing, match="PORT may be"):
        preflight.check_ports(70_000, tmp_path)


def test_the_script_names_one_interpreter() -> None:
    """stdout is the interpreter alone, for make; the findings go to stderr."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--port", "1"], capture_output=True, text=True, check=False
    )
    assert "Python 3." in done.stderr
    if done.returncode == 0:
        assert Path(done.stdout.strip()).exists()
    else:
        assert done.stdout == ""
        assert "MISSING" in done.stderr
