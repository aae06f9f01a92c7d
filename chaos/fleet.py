"""The whole of Sidecache as processes on this machine, with clients that never rest.

The stage that experiments are played on: a cache sidecar on a Unix socket,
scripted workers, a router with two tenants, and, if wanted, a collector behind a
fault proxy.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from chaos.checker import Report, check
from chaos.collector import SpanCounter, open_collector
from chaos.faults.fault import Placement
from chaos.history import Call, History
from chaos.process import ServiceProcess
from chaos.proxy import FaultProxy
from chaos.recorder import Recorder
from chaos.reference import ScriptedReference
from chaos.traffic import Traffic

TENANTS = ("acme", "zeta")
Fields = Mapping[str, str]

_CHANNEL_OPTIONS = (
    # A connection of its own for each tenant, found again soon after a restart.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


@dataclass(frozen=True)
class FleetPlan:
    """What a fleet is made of.

    Attributes:
        workers: how many.
        cached: whether there is a cache sidecar.
        collected: whether telemetry goes to a collector, through a fault proxy.
        kinds: of requests, see :class:`chaos.traffic.Traffic`.
        clients: of each tenant.
        worker, cache, router: settings over the defaults, as
            :meth:`ServiceProcess.start` takes them.
    """

    workers: int = 1
    cached: bool = True
    collected: bool = False
    kinds: tuple[str, ...] = ("fresh", "bypass", "popular")
    clients: int = 1
    worker: Fields = field(default_factory=dict)
    cache: Fields = field(default_factory=dict)
    router: Fields = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Fleet:
    """Running services and their clients.

    Attributes:
        services: by name: ``cache``, ``worker-1``…, ``router``.
        struck: names of services that an experiment ended on purpose.
        collector, proxy, placement: of a collected fleet; the fault that is on.
        windows: calls of each phase, as far as it was observed.
    """

    def __init__(self, plan: FleetPlan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.services: dict[str, ServiceProcess] = {}
        self.struck: set[str] = set()
        self.collector: SpanCounter | None = None
        self.proxy: FaultProxy | None = None
        self.placement: Placement | None = None
        self.windows: dict[str, list[Call]] = {}
        self.history = History()
        self.channels: list[grpc.aio.Channel] = []
        self.traffic: Traffic
        self._stack = AsyncExitStack()
        self._settings: dict[str, tuple[str, dict[str, str]]] = {}
        self._phase = ""
        self._first = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: FleetPlan, folder: Path) -> AsyncIterator["Fleet"]:
        """Start everything, let the clients ask, and end everything when the block is left.

        Raises:
            ServiceDied: a service did not start; says why.
        """
        fleet = cls(plan, folder)
        async with fleet._stack:
            await fleet._start_all()
            try:
                # Clients that stop asking would let an experiment wait for ever.
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(fleet.traffic.run())
                    yield fleet
                    asking.cancel()
            finally:
                for channel in fleet.channels:
                    await channel.close()

    @property
    def phase(self) -> str:
        """The experiment's; its window begins with the calls that are under way then."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        self._first = self.traffic.oldest_open()
        self.traffic.begin_phase(phase)

    @property
    def window(self) -> list[Call]:
        """The observed calls of this phase, those under way at its beginning included."""
        return self.windows[self._phase]

    async def observe(self, calls: int) -> list[Call]:
        """Let so many more calls be sent and end; the phase's window now ends with them."""
        end = len(self.traffic.calls) + calls
        await self.traffic.completed(self._first, end - self._first)
        self.windows[self._phase] = self.traffic.calls[self._first : end]
        return self.traffic.calls[end - calls : end]

    def report(self) -> Report:
        """The checker's verdict on every call that has ended."""
        report = check(self.history.calls, ScriptedReference())
        under_way = {call.number for call in self.history.calls if call.ended is None}
        return Report(
            tuple(v for v in report.violations if v.call not in under_way), report.figures
        )

    def unexpected_deaths(self) -> list[str]:
        """Services that ended though nobody struck them."""
        return [
            name
            for name, service in self.services.items()
            if service.exit_code is not None and name not in self.struck
        ]

    async def restart(self, name: str) -> None:
        """Start a service that ended again, at its old address with its old settings."""
        module, settings = self._settings[name]
        settings["server__listen"] = self.services[name].address
        await self._start(name, module, settings)
        self.struck.discard(name)

    async def _start(self, name: str, module: str, settings: Fields) -> ServiceProcess:
        self._settings[name] = (module, dict(settings))
        service = await self._stack.enter_async_context(
            ServiceProcess.start(module, self.folder, settings, name=name)
        )
        self.services[name] = service
        return service

    async def _start_all(self) -> None:
        telemetry: dict[str, str] = {}
        if self.plan.collected:
            self.collector = await self._stack.enter_async_context(open_collector())
            self.proxy = await self._stack.enter_async_context(
                FaultProxy.open(self.collector.address)
            )
            telemetry["telemetry__otlp_endpoint"] = f"http://{self.proxy.address}"
        # The router needs their addresses; a failure of one stops the others' start.
        async with asyncio.TaskGroup() as first_wave:
            for number in self._worker_numbers():
                first_wave.create_task(self._start_worker(number, telemetry))
            if self.plan.cached:
                first_wave.create_task(self._start_cache(telemetry))
        await self._start_router(telemetry)
        recorders = {tenant: self._recorder(tenant) for tenant in TENANTS}
        self.traffic = Traffic(self.history, recorders, self.plan.kinds, self.plan.clients)

    def _worker_numbers(self) -> range:
        return range(1, self.plan.workers + 1)

    async def _start_worker(self, number: int, telemetry: Fields) -> None:
        name = f"worker-{number}"
        settings = {"engine": "scripted", "name": name, **telemetry, **self.plan.worker}
        await self._start(name, "inference_svc", settings)

    async def _start_cache(self, telemetry: Fields) -> None:
        settings = {
            "server__listen": f"unix:{self.folder}/cache.sock",
            "semantic__enabled": "false",
            **telemetry,
            **self.plan.cache,
        }
        await self._start("cache", "cache_svc", settings)

    async def _start_router(self, telemetry: Fields) -> None:
        targets = [f'"{self.services[f"worker-{n}"].address}"' for n in self._worker_numbers()]
        settings = {
            "workers": f"[{', '.join(targets)}]",
            "keys_file": str(_write_keys(self.folder / "keys.toml")),
            **telemetry,
            **self.plan.router,
        }
        if self.plan.cached:
            settings["cache"] = self.services["cache"].address
        await self._start("router", "router", settings)

    def _recorder(self, tenant: str) -> Recorder:
        address = self.services["router"].address
        channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self.channels.append(channel)
        return Recorder(channel, self.history, tenant=tenant, metadata=credentials(tenant))


def credentials(tenant: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a tenant's calls."""
    return (("authorization", f"Bearer {_key(tenant)}"),)


def _key(tenant: str) -> str:
    return f"chaos-key-of-{tenant}"


def _write_keys(path: Path) -> Path:
    path.write_text(
        "".join(
            f'[[keys]]\ntenant = "{tenant}"\n'
            f'sha256 = "{hashlib.sha256(_key(tenant).encode()).hexdigest()}"\n'
            for tenant in TENANTS
        )
    )
    return path
