"""Writing to a reader, but not for ever."""

import asyncio
from typing import Any

import grpc

from sidecache.errors import StreamInterrupted


async def write_within(
    stall_timeout_s: float, context: grpc.aio.ServicerContext[Any, Any], message: object
) -> None:
    """Write one message; a reader that takes nothing for so long is cut off.

    Raises:
        StreamInterrupted: it took nothing.
    """
    try:
        async with asyncio.timeout(stall_timeout_s):
            await context.write(message)
    except TimeoutError:
        raise StreamInterrupted(
            f"the reader took nothing for {stall_timeout_s:g} s", why="reader_stalled"
        ) from None
