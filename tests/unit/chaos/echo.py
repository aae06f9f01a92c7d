"""A real TCP or Unix server that echoes, and a client for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from chaos.endpoint import Endpoint


@contextlib.asynccontextmanager
async def echo_server(listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Send back whatever comes, and end when the client ended."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    endpoint = Endpoint.parse(listen)
    if endpoint.path:
        server = await asyncio.start_unix_server(handle, endpoint.path)
        address = listen
    else:
        server = await asyncio.start_server(handle, endpoint.host, endpoint.port)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield address
    finally:
        server.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def dial(address: str) -> AsyncIterator[Streams]:
    endpoint = Endpoint.parse(address)
    if endpoint.path:
        reader, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def echo(streams: Streams, data: bytes) -> bytes:
    """Send bytes and wait until as many came back."""
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    return await reader.readexactly(len(data))
