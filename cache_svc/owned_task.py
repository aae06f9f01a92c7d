"""A background task that lives as long as a block."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def owned_task(work: Coroutine[Any, Any, object], name: str) -> AsyncIterator[None]:
    """Run ``work`` beside the block and cancel it at the block's end.

    Raises:
        Exception: what ended the work before; a task that died is never silent.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
