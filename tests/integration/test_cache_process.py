"""The sidecar as a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.shortlists import NO_GPU


def test_the_process_starts_and_drains(tmp_path: Path) -> None:
    """`python -m cache_svc` serves, and ends with code 0 on SIGTERM."""
    ready = tmp_path / "ready"
    variables = {
        "SIDECACHE_CACHE_SERVER__LISTEN": f"unix:{tmp_path}/cache.sock",
        "SIDECACHE_CACHE_SERVER__READY_FILE": str(ready),
        "SIDECACHE_CACHE_SEMANTIC__ENABLED": "false",
    }
    command = [sys.executable, "-m", "cache_svc"]
    process = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            if ready.exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert ready.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_process_says_what_is_missing(tmp_path: Path) -> None:
    """Without its embedder the process ends with code 3 and one clear line."""
    variables = {"SIDECACHE_CACHE_SEMANTIC__EMBEDDER_PATH": str(tmp_path / "none.onnx")}
    done = subprocess.run(
        [sys.executable, "-m", "cache_svc"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "sidecache pull" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
@pytest.mark.parametrize("kind", ["gpu_flat", "gpu_ivf", "gpu_cagra"])
def test_a_gpu_that_is_not_to_be_had_is_told(minilm_path: Path, kind: str) -> None:
    """Asked for a GPU index without a GPU or its FAISS, the process ends and says what to do."""
    variables = {
        "SIDECACHE_CACHE_SEMANTIC__EMBEDDER_PATH": str(minilm_path),
        "SIDECACHE_CACHE_SEMANTIC__INDEX": kind,
    }
    done = subprocess.run(
        [sys.executable, "-m", "cache_svc"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "set semantic.index to ivf or flat" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
