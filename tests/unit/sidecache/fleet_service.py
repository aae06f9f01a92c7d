"""A tiny service for the fleet's tests: health on a socket, and one bad habit of choice.

Run as a module; its settings are the environment: FLEET_LISTEN, FLEET_NAME,
FLEET_JOURNAL (a file that every instance appends to), FLEET_HABIT.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def note(event: str) -> None:
    with Path(os.environ["FLEET_JOURNAL"]).open("a") as journal:
        journal.write(f"{os.environ['FLEET_NAME']} {event}\n")


class Asked(health.aio.HealthServicer):
    """Healthy when asked, and gone soon after."""

    def __init__(self, ended: asyncio.Event) -> None:
        super().__init__()
        self._ended = ended

    async def Check(self, request: Any, context: Any) -> Any:
        asyncio.get_running_loop().call_later(0.3, self._ended.set)
        return await super().Check(request, context)


async def main(habit: str) -> None:
    note("started")
    if habit == "dies at once":
        sys.exit("no model here")
    server = grpc.aio.server()
    ended = asyncio.Event()
    servicer = Asked(ended) if habit == "dies once asked" else health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["FLEET_LISTEN"])
    await server.start()
    if habit == "is never ready":
        await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, (lambda: None) if habit == "ignores SIGTERM" else ended.set
    )
    await ended.wait()
    await server.stop(None)
    note("ended")
    if habit == "dies once asked":
        sys.exit("it was too much")


if __name__ == "__main__":
    asyncio.run(main(os.environ["FLEET_HABIT"]))
