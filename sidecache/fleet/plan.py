"""Which services make a fleet, and how each is told what it needs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidecache.fleet.ports import HOST
from sidecache.fleet.state import FleetState

Engine = Literal["openvino", "scripted"]
# Where engine and embedder share a few cores, a lookup waits for a step of the
# engine now and then; the router's own default is for a sidecar with a core to itself.
LOOKUP_TIMEOUT_S = 0.25


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process of the fleet.

    Attributes:
        name: of its log file.
        title: what people call it.
        module: run as ``python -m MODULE``.
        address: where it will serve.
        environment: its settings, on top of this process's environment.
    """

    name: str
    title: str
    module: str
    address: str
    environment: Mapping[str, str]


def plan_fleet(
    state: FleetState, socket_folder: Path, ports: Sequence[int], engine: Engine
) -> list[ServiceSpec]:
    """The sidecar, the workers and the router: in this order, from the back of a request.

    Args:
        state: the fleet's own folder.
        socket_folder: where the sidecar's socket lies.
        ports: the router's, then one for each worker.
        engine: what the workers run.
    """
    cache = f"unix:{socket_folder / 'cache.sock'}"
    router, *workers = [f"{HOST}:{port}" for port in ports]
    return [
        ServiceSpec(
            "cache",
            "cache sidecar",
            "cache_svc",
            cache,
            {
                "SIDECACHE_CACHE_SERVER__LISTEN": cache,
                "SIDECACHE_CACHE_STORE__PATH": os.environ.get(
                    "SIDECACHE_CACHE_STORE__PATH", str(state.folder / "cache")
                ),
            },
        ),
        *(
            _worker(number, address, engine, alone=len(workers) == 1)
            for number, address in enumerate(workers, 1)
        ),
        ServiceSpec(
            "router",
            "router",
            "router",
            router,
            {
                "SIDECACHE_ROUTER_SERVER__LISTEN": router,
                "SIDECACHE_ROUTER_WORKERS": json.dumps(workers),
                "SIDECACHE_ROUTER_CACHE": cache,
                "SIDECACHE_ROUTER_KEYS_FILE": str(state.keys_file),
                "SIDECACHE_ROUTER_LOOKUP__LOOKUP_TIMEOUT_S": os.environ.get(
                    "SIDECACHE_ROUTER_LOOKUP__LOOKUP_TIMEOUT_S", str(LOOKUP_TIMEOUT_S)
                ),
            },
        ),
    ]


def _worker(number: int, address: str, engine: Engine, *, alone: bool) -> ServiceSpec:
    name = f"worker-{number}"
    return ServiceSpec(
        name,
        "worker" if alone else f"worker {number}",
        "inference_svc",
        address,
        {
            "SIDECACHE_WORKER_SERVER__LISTEN": address,
            "SIDECACHE_WORKER_NAME": name,
            "SIDECACHE_WORKER_ENGINE": engine,
        },
    )
