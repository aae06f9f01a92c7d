"""The project's environment is made once, and a failure to make it is one clear line."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecache import install


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own, with the very script inside."""
    (tmp_path / "sidecache").mkdir()
    shutil.copy(install.__file__, tmp_path / "sidecache" / "install.py")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
    return tmp_path


def run_install(
    project: Path, *extras: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, project / "sidecache" / "install.py", *extras],
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_index_it_says_so(project: Path) -> None:
    """pip's own error, the log's path and exit code 1; the next run tries again."""
    done = run_install(project, "cpu", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "No matching distribution" in done.stderr
    assert "install.log" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / ".venv" / "installed.json").exists()


@pytest.fixture
def installed(project: Path) -> Path:
    """As after an install with cpu and dev: an interpreter, and the note."""
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    pyproject = hashlib.sha256((project / "pyproject.toml").read_bytes()).hexdigest()
    note = {"extras": ["cpu", "dev"], "sources": [str(project), pyproject]}
    (project / ".venv" / "installed.json").write_text(json.dumps(note))
    return project


def test_the_second_time_is_silent(installed: Path) -> None:
    """Nothing is asked of pip while what was installed is what is wanted, or more."""
    for extras in (("cpu", "dev"), ("cpu",), ()):
        done = run_install(installed, *extras)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("change", ["dependency", "extra", "interpreter"])
def test_what_changed_is_installed(installed: Path, change: str) -> None:
    """A changed pyproject.toml, a new extra and a lost interpreter each start an install."""
    extras = ["cpu"]
    if change == "dependency":
        (installed / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '2'\n")
    elif change == "extra":
        extras.append("hub")
    else:
        (installed / ".venv" / "bin" / "python").unlink()
        (installed / ".venv" / "bin" / "python").symlink_to("/nonexistent")
    # In the way of venv, so that the attempt is seen and ends at once.
    (installed / ".venv" / "pyvenv.cfg").mkdir()
    done = run_install(installed, *extras)
    assert done.returncode == 1
    assert "making .venv failed: " in done.stderr
