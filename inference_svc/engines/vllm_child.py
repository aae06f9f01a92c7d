"""Two manners that vLLM's own processes are taught: to end with their worker, and to yield.

vLLM's engine process does not notice when its parent is gone (0.25 to 0.32): after a SIGKILL
of the worker it would stay, with its GPU memory. So it watches its parent itself.

On a CPU its processes wait for each other by ``sched_yield`` in a loop. On Linux 6.18 that
starves everything else on those cores: on two cores under one busy engine, processes that only
sleep 50 ms at a time were up to 18 s late. There they wait by short sleeps instead: at most
0.13 s late, and as many tokens/s. With a GPU vLLM has cores to itself, and is left as it is.

Code of ours gets into those processes by vLLM's own way, a plugin: pyproject.toml names
:func:`join_worker` in the group ``vllm.general_plugins``, which vLLM calls early in each of
its processes. In a vLLM that no worker started it does nothing.
"""

import importlib.metadata
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess

_YIELD_S = 20e-6
WORKER_PID = "SIDECACHE_VLLM_WORKER_PID"
_GROUP, _NAME = "vllm.general_plugins", "sidecache"


def prepare() -> bool:
    """In the worker, before vLLM starts processes; whether they will hear of it.

    They do not where Sidecache is not installed as a package, or where the operator's
    VLLM_PLUGINS leaves it out.
    """
    os.environ[WORKER_PID] = str(os.getpid())
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _NAME not in allowed.split(","):
        return False
    return bool(importlib.metadata.entry_points(group=_GROUP, name=_NAME))


def join_worker() -> None:
    """In any of vLLM's processes: what it is taught, if a worker of ours started it."""
    parent = multiprocessing.parent_process()
    worker = os.environ.get(WORKER_PID)
    if parent is None or worker is None or worker == str(os.getpid()):
        return
    _end_with(parent)
    if _on_cpu():
        _yield_by_sleeping()


def _end_with(parent: BaseProcess) -> None:
    """From now on this process ends when the one that started it does."""

    def watch() -> None:
        parent.join()
        # Nothing is left that could be told, and a busy engine would not listen.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="sidecache-parent", daemon=True).start()


def _on_cpu() -> bool:
    try:
        from vllm.platforms import current_platform  # noqa: PLC0415 - only inside vLLM
    except ImportError:
        return False
    return bool(current_platform.is_cpu())


def _yield_by_sleeping() -> None:
    def nap() -> None:
        time.sleep(_YIELD_S)

    os.sched_yield = nap
