import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from observability.quiet import silence_openvino
from sidecache.errors import BrokenInvariant

# Imports openvino as a service does and tells what it tried. Forks and look-ups are
# refused, so that not even the negative control reaches the network.
PROBE = """
import json, sys
tried = []
def watch(event, args):
    if event in ("os.fork", "socket.getaddrinfo", "socket.connect", "subprocess.Popen"):
        tried.append(event)
        raise OSError("not from a test")
sys.addaudithook(watch)
if sys.argv[1] == "silenced":
    from observability.quiet import silence_openvino
    silence_openvino()
import openvino, openvino_genai
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join(0.5)
print(json.dumps({"tried": tried, "loaded": sys.modules.get("openvino_telemetry") is not None}))
"""


def import_openvino(mode: str, home: Path) -> dict[str, Any]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("CI", "TF_BUILD", "JENKINS_URL")  # openvino_telemetry obeys these
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, mode],
        env={**environment, "HOME": str(home)},
        cwd=Path(__file__).parents[3],
        check=True,
        capture_output=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_silenced_openvino_sends_and_writes_nothing(tmp_path: Path) -> None:
    """After silence_openvino() the import starts no process, no connection, and leaves no file."""
    pytest.importorskip("openvino_genai", reason="only with the [cpu] extra")
    found = import_openvino("silenced", tmp_path)
    assert found == {"tried": [], "loaded": False}
    assert list(tmp_path.iterdir()) == []


def test_openvino_would_phone_home_otherwise(tmp_path: Path) -> None:
    """Negative control: without it the import does try, so the test above can see it."""
    pytest.importorskip("openvino_genai", reason="only with the [cpu] extra")
    found = import_openvino("as it comes", tmp_path)
    assert found["loaded"]
    assert "os.fork" in found["tried"]
    assert [p.name for p in tmp_path.iterdir()] == ["intel"]


def test_silencing_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once openvino_telemetry is loaded it has already reported; that must not pass unseen."""
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)
    with pytest.raises(BrokenInvariant, match="before openvino is imported"):
        silence_openvino()
