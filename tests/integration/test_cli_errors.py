"""The command line: each error is one line and a fitting exit code, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from sidecache.catalogue import CATALOGUE


def sidecache(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sidecache", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("pull", "nope"), 2, "smollm2-135m-instruct"),
        (("pull", "hf:nope"), 2, "hf:ORG/NAME"),
        (("chat", "-a", "127.0.0.1:1"), 5, "nothing answers at 127.0.0.1:1"),
        (("cache", "stats", "-a", "127.0.0.1:1"), 5, "nothing answers at 127.0.0.1:1"),
        (("cache", "stats", "-a", "gateway.example:1", "--ca-file", "/no.pem"), 3, "/no.pem"),
        (("cache", "stats", "--api-key-file", "/no.key"), 3, "/no.key"),
        (("keys", "create", "--tenant", "a b", "--file", "/nonexistent/k"), 2, "'a b'"),
        (("up", "--port", "99999"), 2, "99999"),
        (("up", "--workers", "0"), 2, "workers"),
        (("frobnicate",), 2, "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_clear_line(arguments: tuple[str, ...], code: int, word: str) -> None:
    """What was wrong, by name."""
    done = sidecache(*arguments)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_from_a_hub_without_one() -> None:
    """Offline, a hub's name ends in one line of what the hub said."""
    done = sidecache("pull", "hf:org/name", HF_HUB_OFFLINE="1", HF_HOME="/nonexistent")
    assert done.returncode == 3, done.stderr
    assert "error: the hub did not give hf:org/name" in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_without_the_hub_extra(tmp_path: Path) -> None:
    """Where huggingface_hub is not installed, the line says what to install."""
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not here')")
    root = str(Path(__file__).resolve().parents[2])
    done = sidecache("pull", "hf:org/name", PYTHONPATH=f"{tmp_path}:{root}")
    assert done.returncode == 3, done.stderr
    assert "pip install 'sidecache[hub]'" in done.stderr


def test_pull_says_where_weights_are(minilm_path: Path) -> None:
    """Weights that are here are found at once; stdout is their path alone."""
    home = minilm_path.parents[2]
    done = sidecache("pull", "minilm-l6-v2-int8", SIDECACHE_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(minilm_path)
    assert done.stderr == ""
    assert minilm_path.name == CATALOGUE["minilm-l6-v2-int8"].filename


def test_a_new_key_is_shown_once(tmp_path: Path) -> None:
    """stdout is the key alone, so that it can be piped into a secret store."""
    path = tmp_path / "keys.toml"
    done = sidecache("keys", "create", "--tenant", "acme", "--file", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sc-")
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.strip() not in path.read_text()


def test_the_client_stays_slim() -> None:
    """The command line imports no service and nothing that only a service needs."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, sidecache.cli; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    rooms = {"router", "cache_svc", "inference_svc", "observability", "chaos"}
    heavy = {"faiss", "numpy", "onnxruntime", "openvino", "pydantic", "uvloop", "tokenizers"}
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & (rooms | heavy) == set()


def test_version_names_its_python() -> None:
    """For a bug report: release, Python and machine."""
    done = sidecache("version")
    assert done.returncode == 0
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in done.stdout
