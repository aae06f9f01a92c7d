"""A service as a process."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from pydantic_settings import BaseSettings, CliApp

from observability.server import RunningServer
from observability.telemetry import Telemetry
from sidecache.errors import SetupError

S = TypeVar("S", bound=BaseSettings)


def run(
    service: str,
    settings_class: type[S],
    serve: Callable[[S, Telemetry], AbstractAsyncContextManager[RunningServer]],
) -> int:
    """Run a service until SIGTERM; the exit code."""
    settings = CliApp.run(settings_class)

    async def main() -> None:
        telemetry = Telemetry.start(service, settings.telemetry)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with serve(settings, telemetry) as running:
            if settings.server.ready_file:
                settings.server.ready_file.write_text(running.address)
            await stop.wait()
            await running.drain(settings.server.drain_grace_s)
        await telemetry.aclose()

    try:
        asyncio.run(main())
    except SetupError as error:
        print(f"{service}: {error}", file=sys.stderr)
        return 3
    return 0
