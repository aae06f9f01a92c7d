"""A service as a process: settings in, signals, drain, an exit code."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import uvloop
from pydantic_settings import BaseSettings

from observability.configuration import BadConfiguration, load, split_file
from observability.logs import configure_logging, log_unhandled
from observability.reload import Reloading
from observability.server import RunningServer
from observability.settings import ServerSettings, TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import SetupError

logger = logging.getLogger(__name__)

# Container objects made between two looks for garbage.
_COLLECT_AFTER: Final = 10_000

EXIT_OK: Final = 0
EXIT_CRASHED: Final = 1
EXIT_BAD_CONFIGURATION: Final = 2
EXIT_CANNOT_START: Final = 3


class ServiceSettings(Protocol):
    """What every service's settings hold beside its own."""

    @property
    def server(self) -> ServerSettings: ...
    @property
    def telemetry(self) -> TelemetrySettings: ...


S = TypeVar("S", bound=BaseSettings)


def run(
    service: str,
    settings_class: type[S],
    serve: Callable[[S, Telemetry], AbstractAsyncContextManager[RunningServer]],
) -> int:
    """Run a service until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
        service: its name, e.g. sidecache-router.
        settings_class: has the fields `server` and `telemetry`.
        serve: opens the service; leaving its block closes it.

    Returns:
        0 after a drain, 1 after a crash, 2 for a bad setting, 3 when it cannot
        start (each with one line on stderr).
    """
    reloading = Reloading(
        # Flags and environment cannot change any more; the file can.
        lambda: load(settings_class, service, sys.argv[1:]),
        split_file(sys.argv[1:])[0],
    )
    try:
        settings = load(settings_class, service, sys.argv[1:])
    except BadConfiguration as error:
        for line in error.lines:
            _say(service, line)
        return EXIT_BAD_CONFIGURATION
    common = cast("ServiceSettings", settings)
    configure_logging(service, common.telemetry)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            process = _Process(service, common, reloading)
            runner.run(process.run(lambda telemetry: serve(settings, telemetry)))
    except BaseException as error:
        setup = _setup_error(error)
        if setup is not None:
            _say(service, setup.text)
            return EXIT_CANNOT_START
        if not isinstance(error, Exception):
            raise
        logger.exception("crashed")
        return EXIT_CRASHED
    return EXIT_OK


class _Process:
    """From the first line of `serve` to the last span of telemetry."""

    def __init__(self, service: str, settings: ServiceSettings, reloading: Reloading) -> None:
        self._service = service
        self._settings = settings
        self._reloading = reloading
        self._stop = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    async def run(
        self, serve: Callable[[Telemetry], AbstractAsyncContextManager[RunningServer]]
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        # Without a handler a SIGHUP would end the process.
        loop.add_signal_handler(signal.SIGHUP, self._reloading.reload)
        telemetry = Telemetry.start(self._service, self._settings.telemetry)
        try:
            logger.debug("starting")
            self._starting = serving = asyncio.create_task(self._serve(serve(telemetry)))
            await self._ended(serving)
        finally:
            await telemetry.aclose()

    async def _serve(self, server: AbstractAsyncContextManager[RunningServer]) -> None:
        settings = self._settings.server
        async with server as running:
            self._starting = None
            settle_memory()
            with _ready_file(settings.ready_file, running.address):
                logger.info("serving on %s", running.address)
                self._reloading.apply = running.reconfigure
                watch = asyncio.create_task(self._reloading.watch(), name="reload")
                await self._stop.wait()
                watch.cancel()
                logger.info("draining for at most %.1f s", settings.drain_grace_s)
                await running.drain(settings.drain_grace_s, settings.drain_linger_s)
        logger.info("stopped")

    async def _ended(self, serving: asyncio.Task[None]) -> None:
        try:
            await serving
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            logger.info("stopped before it served")

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            if self._settings.server.ready_file is not None:
                self._settings.server.ready_file.unlink(missing_ok=True)
            os._exit(128 + number)
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()


def settle_memory() -> None:
    """What exists when the service is up stays; looking through it again and again helps nobody.

    Garbage in cycles is rare here, so it is looked for less often than Python's default has it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


@contextmanager
def _ready_file(path: Path | None, address: str) -> Iterator[None]:
    """Tell whoever started us where we serve; never half written."""
    if path is None:
        yield
        return
    try:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(f"{address}\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise SetupError(
            f"ready file {path}: {error.strerror}; name a path we can write"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _setup_error(error: BaseException) -> SetupError | None:
    """The SetupError in an error or in a TaskGroup's group of errors."""
    if isinstance(error, SetupError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_setup_error, error.exceptions)), None)
    return None


def _say(service: str, line: str) -> None:
    sys.stderr.write(f"{service}: {line}\n")
