"""`sidecache top`: each worker's KV cache, and how well it is followed."""

import time
from collections.abc import Callable, Sequence

from rich.table import Table

from sidecache.v1 import admin_pb2, cache_pb2

_STATES = {
    admin_pb2.WORKER_STATE_CONNECTING: "connecting",
    admin_pb2.WORKER_STATE_READY: "ready",
    admin_pb2.WORKER_STATE_CORDONED: "cordoned",
    admin_pb2.WORKER_STATE_UNHEALTHY: "unhealthy",
}
_COLUMNS = (
    "worker", "state", "streams", "prompt cached", "KV in use", "blocks known", "events/s",
    "behind", "resyncs", "followed",
)  # fmt: skip


class EventRates:
    """KV events a second of each worker, between two looks.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def look(self, followed: Sequence[cache_pb2.FollowedWorker]) -> dict[str, float]:
        """The rates since the look before; workers that are seen first have none."""
        now_s = self._clock()
        rates = {}
        for each in followed:
            then_s, events = self._seen.get(each.address, (now_s, 0))
            # Fewer than before: another follower of that address, which counts anew.
            if now_s > then_s and each.events >= events:
                rates[each.address] = (each.events - events) / (now_s - then_s)
        self._seen = {each.address: (now_s, each.events) for each in followed}
        return rates


def workers_table(
    workers: Sequence[admin_pb2.WorkerStatus],
    followed: Sequence[cache_pb2.FollowedWorker],
    rates: dict[str, float],
) -> Table:
    """Every worker of the router, with what its sidecar knows of it."""
    by_address = {each.address: each for each in followed}
    table = Table(title="Workers", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in {"worker", "state"} else "right")
    for worker in workers:
        known = by_address.get(worker.address)
        table.add_row(
            worker.worker,
            _STATES.get(worker.state, "unknown"),
            f"{worker.leases:,}",
            _share(worker.cached_prompt_tokens, worker.prompt_tokens),
            _in_use(worker),
            *(_known(known, rates.get(worker.address)) if known else ("-",) * 5),
        )
    return table


def _known(worker: cache_pb2.FollowedWorker, rate: float | None) -> tuple[str, ...]:
    return (
        f"{worker.blocks:,} of {worker.max_blocks:,}" if worker.max_blocks else "-",
        f"{rate:,.0f}" if rate is not None else f"({worker.events:,} so far)",
        f"{worker.changes_behind:,}",
        f"{worker.resyncs:,}",
        worker.state.replace("_", " "),
    )


def _in_use(worker: admin_pb2.WorkerStatus) -> str:
    if not worker.HasField("kv_cache_usage"):
        return "-"
    blocks = f" of {worker.kv_blocks:,}" if worker.HasField("kv_blocks") else ""
    return f"{100 * worker.kv_cache_usage:.0f} %{blocks}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
