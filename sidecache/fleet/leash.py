"""Become a service that dies with its parent: ``python -m sidecache.fleet.leash PID MODULE``.

The kernel kills the service when the thread that started it ends, however it
ends (PR_SET_PDEATHSIG, Linux), so not even a SIGKILL of `sidecache up` leaves a
service behind. It is set here, in a process of its own before it becomes the
service, because code between fork and exec is unsafe in a parent with threads.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Put the leash on and become the module; returns only when it was too late."""
    parent, module = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == int(parent):
        os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606  no shell is wanted
    return 1  # the parent died before the leash was on


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
