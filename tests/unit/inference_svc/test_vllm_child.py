"""vLLM's processes end with their worker; any other process is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from inference_svc.engines import vllm_child
from tests.fixtures.processes import still_running

# A worker that starts a process as vLLM does, tells its number, and hangs.
WORKER = """
import multiprocessing, os, sys, time
from inference_svc.engines import vllm_child

def engine():
    vllm_child.join_worker()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    if sys.argv[1] == "ours":
        vllm_child.prepare()
    vllm_child.join_worker()
    multiprocessing.get_context("spawn").Process(target=engine).start()
    time.sleep(600)
"""


@pytest.mark.parametrize(("whose", "ends"), [("ours", True), ("theirs", False)])
def test_a_killed_workers_processes_end(tmp_path: Path, whose: str, ends: bool) -> None:
    """Of a worker of ours they end at once; of a vLLM that somebody else started they do not."""
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, str(program), whose],
        stdout=subprocess.PIPE,
        # What another test of this process has prepared is not this worker's.
        env={k: v for k, v in os.environ.items() if k != vllm_child.WORKER_PID}
        | {"PYTHONPATH": os.pathsep.join(["", *sys.path])},
    ) as worker:
        assert worker.stdout is not None
        engine = psutil.Process(int(worker.stdout.readline()))
        assert worker.poll() is None
        worker.kill()
    left = still_running([engine], 5 if ends else 0.5)
    for process in left:
        process.kill()
    assert bool(left) != ends


def test_an_operators_choice_of_plugins_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where VLLM_PLUGINS leaves ours out, that is said and not changed."""
    monkeypatch.setenv("VLLM_PLUGINS", "somebody,else")
    monkeypatch.setenv(vllm_child.WORKER_PID, "0")  # so that it is put back
    assert not vllm_child.prepare()
    assert os.environ["VLLM_PLUGINS"] == "somebody,else"
