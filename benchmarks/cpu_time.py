"""CPU time of another process, to the nanosecond."""

from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Seconds that all threads of a process have run so far.

    From the scheduler's own account: /proc/PID/stat counts in ticks of 10 ms,
    which is most of what a short round costs.
    """
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)
