"""What a test started in a session of its own does not outlive a killed test run."""

import os
import subprocess
import sys

import psutil

from tests.fixtures.processes import Reaper, still_running

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# Starts a process, has it watched, says its pid, and is then killed.
RUN = f"""
import subprocess, time
from tests.fixtures.processes import Reaper
sleeper = subprocess.Popen({SLEEP!r}, start_new_session=True)
reaper = Reaper(sleeper.pid)
print(sleeper.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_run_leaves_nothing_behind() -> None:
    """Even a SIGKILL, after which the run itself can do nothing."""
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        sleeper = psutil.Process(int(run.stdout.readline()))
        run.kill()
    left = still_running([sleeper], 10)
    for process in left:
        process.kill()
    assert not left


def test_a_dismissed_reaper_kills_nobody() -> None:
    """The number of a group that has ended may be somebody else's."""
    with subprocess.Popen(SLEEP, start_new_session=True) as sleeper:
        reaper = Reaper(sleeper.pid)
        reaper.dismiss()
        assert sleeper.poll() is None
        os.killpg(sleeper.pid, 9)
