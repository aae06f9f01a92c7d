"""vLLM's processes end with their worker, however it ends.

vLLM's engine process does not notice when its parent is gone (0.25 to 0.32): after a SIGKILL
of the worker it would stay, with its GPU memory. So it watches its parent itself. Code of ours
gets into that process by vLLM's own way, a plugin: pyproject.toml names
:func:`end_with_worker` in the group ``vllm.general_plugins``, which vLLM calls early in each
of its processes. In a vLLM that no worker started it does nothing.
"""

import importlib.metadata
import multiprocessing
import os
import signal
import threading

_WORKER_PID = "SIDECACHE_VLLM_WORKER_PID"
_GROUP, _NAME = "vllm.general_plugins", "sidecache"


def prepare() -> bool:
    """In the worker, before vLLM starts processes; whether they will hear of it.

    They do not where Sidecache is not installed as a package, or where the operator's
    VLLM_PLUGINS leaves it out.
    """
    os.environ[_WORKER_PID] = str(os.getpid())
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _NAME not in allowed.split(","):
        return False
    return bool(importlib.metadata.entry_points(group=_GROUP, name=_NAME))


def end_with_worker() -> None:
    """In any of vLLM's processes: from now on it ends when the process that started it does."""
    parent = multiprocessing.parent_process()
    worker = os.environ.get(_WORKER_PID)
    if parent is None or worker is None or worker == str(os.getpid()):
        return

    def watch() -> None:
        parent.join()
        # Nothing is left that could be told, and a busy engine would not listen.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="sidecache-parent", daemon=True).start()
