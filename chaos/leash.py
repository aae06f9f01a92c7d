"""Run a command that dies with its parent: ``python -m chaos.leash PARENT_PID COMMAND...``.

The kernel kills the command when the thread that started it ends, however it
ends (PR_SET_PDEATHSIG, Linux), so not even a SIGKILL of the test run leaves a
service behind. Set from inside the child, because code between fork and exec is
unsafe in a process with threads, and gRPC has some.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Put the leash on and become the command; returns only when it was too late."""
    parent, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == int(parent):
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    return 1  # the parent died before the leash was on


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
