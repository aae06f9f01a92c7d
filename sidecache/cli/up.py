"""`sidecache up`: the whole gateway on this machine, until Ctrl-C."""

import asyncio
import importlib.util
import signal
import sys
from contextlib import suppress
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from sidecache.catalogue import MINILM, SMOLLM2
from sidecache.cli.console import complain, err, out
from sidecache.cli.next_steps import show_next_steps
from sidecache.cli.pull import pull_with_progress
from sidecache.cli.tour import take_tour
from sidecache.client import SidecacheClient
from sidecache.errors import SetupError
from sidecache.fleet.fleet import Fleet
from sidecache.fleet.plan import plan_fleet
from sidecache.fleet.ports import busy_ports, choose_ports, free_block, holder
from sidecache.fleet.service_log import ServiceLog
from sidecache.fleet.service_process import ServiceProcess
from sidecache.fleet.state import DEFAULT_PORT, FleetState, find_running

_MODELS_WAIT_S = 30.0
_MODELS_POLL_S = 0.1


class Engine(StrEnum):
    """What the workers run."""

    OPENVINO = "openvino"
    SCRIPTED = "scripted"


def up(
    port: Annotated[
        int, typer.Option(help="The router's; workers take the ports after it. 0: any free ones.")
    ] = DEFAULT_PORT,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many.")] = 1,
    engine: Annotated[
        Engine, typer.Option(help="The real model, or a deterministic one for tests.")
    ] = Engine.OPENVINO,
    tour: Annotated[
        bool,
        typer.Option("--tour", help="Show what it does first; without a terminal, end after that."),
    ] = False,
) -> None:
    """Start the cache sidecar, the workers and the router, and keep them running."""
    _refuse_slim_install(engine)
    ports = choose_ports(port, workers)
    _refuse_busy(ports)
    if engine is Engine.OPENVINO:
        pull_with_progress(SMOLLM2.name)
    pull_with_progress(MINILM.name)
    state = FleetState(ports[0])
    with state.claimed(), state.socket_folder() as socket_folder:
        specs = plan_fleet(state, socket_folder, ports, engine.value)
        services = [ServiceProcess(spec, ServiceLog(state.log_file(spec.name))) for spec in specs]
        key = state.demo_key()
        state.note_running(specs[-1].address, ports)
        code = asyncio.run(Session(services, state, key, ports, tour=tour).run())
    raise typer.Exit(code)


class Session:
    """One `sidecache up`, from the first process to the last.

    Args:
        services: the fleet; the router is the last.
        state: its folder.
        api_key: the demo key.
        ports: the router's, then the workers'.
        tour: whether to show the tour first.
    """

    def __init__(
        self,
        services: list[ServiceProcess],
        state: FleetState,
        api_key: str,
        ports: list[int],
        *,
        tour: bool,
    ) -> None:
        self._fleet = Fleet(services, complain)
        self._state = state
        self._address = services[-1].spec.address
        self._key = api_key
        self._num_workers = len(ports) - 1
        self._tour = tour

    async def run(self) -> int:
        """Serve until a signal, or until the tour's end without a terminal; the exit code."""
        story = asyncio.create_task(self._story())
        self._on_signals(story)
        try:
            return await story
        except asyncio.CancelledError:
            return 0

    def _on_signals(self, story: "asyncio.Task[int]") -> None:
        """The first signal drains, the second kills."""
        signals = 0

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            if signals == 1:
                err.print("\n[dim]stopping: router, workers, cache sidecar (again: at once)[/dim]")
                story.cancel()
            else:
                self._fleet.kill()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)

    async def _story(self) -> int:
        async with self._fleet:
            await self._start()
            watch = asyncio.create_task(self._fleet.watch())
            show = asyncio.create_task(self._show())
            try:
                await asyncio.wait({watch, show}, return_when=asyncio.FIRST_COMPLETED)
                # The watch ends only when a service cannot be kept alive.
                if watch.done():
                    await watch
                return await show
            finally:
                for task in (show, watch):
                    task.cancel()
                    with suppress(asyncio.CancelledError, SetupError):
                        await task

    async def _start(self) -> None:
        def ready(service: ServiceProcess, took_s: float) -> None:
            line = f"{service.spec.title:<14} {service.spec.address}"
            out.print(Text.assemble(("✓ ", "green"), line, (f"  {took_s:.1f} s", "dim")))

        with out.status("starting …"):
            await self._fleet.start(ready)
            async with SidecacheClient(self._address, api_key=self._key) as client:
                await self._wait_models(client)

    async def _wait_models(self, client: SidecacheClient) -> None:
        """Wait until the router has found every worker."""
        try:
            async with asyncio.timeout(_MODELS_WAIT_S):
                while await _ready_workers(client) < self._num_workers:  # noqa: ASYNC110  remote
                    await asyncio.sleep(_MODELS_POLL_S)
        except TimeoutError:
            raise SetupError(
                f"the router found no worker within {_MODELS_WAIT_S:g} s; the logs are in "
                f"{self._state.folder}"
            ) from None

    async def _show(self) -> int:
        """The tour, then how to go on; ends by itself only after a tour without a terminal."""
        went_well = True
        interactive = sys.stdin.isatty()
        if self._tour:
            async with SidecacheClient(self._address, api_key=self._key) as client:
                went_well = await take_tour(client)
        show_next_steps(self._address, self._key, self._state.folder)
        if self._tour and not interactive:
            out.print("[dim]No terminal: stopping after the tour.[/dim]")
            return 0 if went_well else 1
        await asyncio.Event().wait()
        return 0


async def _ready_workers(client: SidecacheClient) -> int:
    return sum(model.ready_workers for model in await client.models())


def _refuse_slim_install(engine: Engine) -> None:
    """The services need more than the client: look for it, without importing it."""
    needed = ["faiss", "onnxruntime", "pydantic_settings", "uvloop"]
    if engine is Engine.OPENVINO:
        needed.append("openvino_genai")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise SetupError(
            f"`sidecache up` runs the services, which need the extra [cpu] ({missing[0]} is not "
            "installed): run `pip install 'sidecache[cpu]'`"
        )


def _refuse_busy(ports: list[int]) -> None:
    """Find a busy port before anything is started, and say who holds it."""
    for port in busy_ports(ports):
        other = free_block(len(ports), start=ports[0] + 100)[0]
        if running := find_running(port):
            raise SetupError(
                f"port {port} is busy: Sidecache already runs here (pid {running.pid}, "
                f"{running.address}). Talk to it with `sidecache chat --address "
                f"{running.address}`, stop it with `kill {running.pid}`, or start another one "
                f"with `--port {other}`"
            )
        who = holder(port)
        raise SetupError(
            f"port {port} is busy: {'held by ' + who if who else 'another program holds it'}. "
            f"Stop that, or choose other ports with `--port {other}`"
        )
