"""Starts workers in milliseconds, by forking a process that has imported everything.

    python -m benchmarks.warm_workers

A worker's start costs half a second of CPU, nearly all of it imports; where one is killed
each second that would be a quarter of a small machine, and the benchmark would measure
Python's imports. Each line on stdin is a JSON object with the ``environment`` and the
``log`` of a worker; each line on stdout is the process id it got. The fork happens before
gRPC has started a thread, which is checked. Everything ends with the end of stdin.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import inference_svc.engines.scripted  # noqa: F401 - to have it imported before the fork
from inference_svc.serve import serve
from inference_svc.settings import WorkerSettings
from observability.process import run

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Fork a worker for each line until there are no more."""
    # The kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if len(list(Path("/proc/self/task").iterdir())) != 1:
            raise RuntimeError("a thread runs already: a fork would lose it")
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(_be_worker(order["environment"], order["log"]))
        print(pid, flush=True)
    return 0


def _be_worker(environment: dict[str, str], log: str) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    sys.argv = ["inference_svc"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with Path(log).open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    return run("sidecache-worker", WorkerSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
