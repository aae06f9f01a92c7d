"""Reads a burst in turns with everyone else on the event loop.

What is there already is read without waiting: one read of a socket may bring hundreds of
events, each of which is parsed and decoded, and meanwhile nothing else runs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

_TURN_S = 0.002


class InTurns:
    """An iterator, read so that nobody else waits for much longer than a turn.

    Args:
        lines: what is read.
        clock: seconds; the loop's own unless given.
    """

    def __init__(
        self, lines: AsyncIterator[bytes], clock: Callable[[], float] | None = None
    ) -> None:
        self._lines = lines
        self._clock = clock or asyncio.get_running_loop().time
        self._began = self._clock()

    async def next(self) -> bytes | None:
        """The next line; None after the last one."""
        asked = self._clock()
        if asked - self._began > _TURN_S:
            await asyncio.sleep(0)
            self._began = asked = self._clock()
        line = await anext(self._lines, None)
        came = self._clock()
        if came - asked > _TURN_S:
            self._began = came  # it was waited for, and others ran
        return line
