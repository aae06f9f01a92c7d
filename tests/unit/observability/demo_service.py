"""The smallest service there can be, for tests that need a real process."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from observability.process import run
from observability.server import RunningServer, open_server
from observability.settings import ServerSettings, TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import SetupError, Unsupported
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc


class DemoSettings(BaseSettings):
    """What the demo can be told to do."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_DEMO_", env_nested_delimiter="__", frozen=True
    )

    server: ServerSettings = ServerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    finish_file: Path | None = None
    """Streams wait for this file before their last message."""
    start_error: str = ""
    """setup: cannot start; bug: crashes at the start; hang: never starts."""


class Demo(rpc.InferenceServiceServicer):
    """Streams two messages, the second when it is told to."""

    def __init__(self, finish_file: Path | None) -> None:
        self._finish_file = finish_file

    async def Generate(self, request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        while self._finish_file is not None and not self._finish_file.exists():
            await asyncio.sleep(0.01)
        await context.write(pb.GenerateResponse())

    async def Attach(self, request: Any, context: Any) -> None:
        raise Unsupported("the demo only generates")

    async def ListModels(self, request: Any, context: Any) -> Any:
        raise Unsupported("the demo only generates")

    async def Tokenize(self, request: Any, context: Any) -> Any:
        raise Unsupported("the demo only generates")

    async def ReportWrongAnswer(self, request: Any, context: Any) -> Any:
        raise Unsupported("the demo only generates")


@asynccontextmanager
async def serve(settings: DemoSettings, telemetry: Telemetry) -> AsyncIterator[RunningServer]:
    """Serve the demo."""
    async with asyncio.TaskGroup():
        match settings.start_error:
            case "setup":
                raise SetupError("the model file is missing: run sidecache pull")
            case "bug":
                raise ValueError("canary")
            case "hang":
                await asyncio.Event().wait()
    async with open_server(
        settings.server,
        telemetry,
        lambda server: rpc.add_InferenceServiceServicer_to_server(
            Demo(settings.finish_file), server
        ),
        services=["sidecache.v1.InferenceService"],
    ) as running:
        yield running


if __name__ == "__main__":
    sys.exit(run("sidecache-demo", DemoSettings, serve))
