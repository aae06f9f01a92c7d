"""A worker that is killed takes vLLM's processes, and so a GPU's memory, with it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from inference_svc.engines import vllm_child
from tests.fixtures.processes import still_running


@pytest.mark.skipif(not vllm_child.prepare(), reason="needs sidecache installed: make test-vllm")
def test_a_killed_worker_leaves_no_engine_behind(tiny_llama: Path, tmp_path: Path) -> None:
    """Within 5 s of a SIGKILL of the worker nothing that it started is left."""
    ready = tmp_path / "ready"
    settings = {
        "engine": "vllm", "model_path": tiny_llama, "server.ready_file": ready,
        "vllm.dtype": "float32", "vllm.cpu_kv_cache_gib": "1",
        "vllm.warm_up_streams": "1", "vllm.max_model_len": "512",
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "inference_svc", "--vllm.enforce_eager", *flags]
    deadline = time.monotonic() + 400
    with subprocess.Popen(command) as worker:
        while not ready.exists():
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(worker.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(each.cmdline()) for each in family)
        worker.kill()
    left = still_running(family, 5)
    for process in left:
        process.kill()
    assert not left
