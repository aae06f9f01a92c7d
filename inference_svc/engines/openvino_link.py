"""The parent's end of the stepping process: start it, talk to it, notice its death."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sidecache.errors import EngineFailed

_PROGRAM = Path(__file__).with_name("openvino_process.py")
_MAX_LINE_BYTES = 1 << 20
_EXIT_TIMEOUT_S = 2.0


class EngineLink:
    """A running stepping process; see openvino_process.py for what is said.

    Attributes:
        ready: what the process says once its engine is warm: ``build``, ``warm_up`` and
            ``kv_cache_bytes``.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.ready: dict[str, Any] = {}

    @classmethod
    async def open(cls, config: dict[str, Any], timeout_s: float) -> "EngineLink":
        """Start the process and wait until its engine is warm.

        Raises:
            EngineFailed: it could not load the model, died, or took too long.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Else the folder of the program, with an openvino.py in it, would come
            # before the package openvino.
            "-P",
            str(_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
            # A Ctrl-C at the terminal is for the parent, which then drains.
            start_new_session=True,
        )
        link = cls(process)
        try:
            async with asyncio.timeout(timeout_s):
                await link._hand_shake(config)
        except TimeoutError:
            await link.aclose()
            raise EngineFailed(f"the engine did not load within {timeout_s:g} s") from None
        except BaseException:
            await link.aclose()
            raise
        return link

    @property
    def pid(self) -> int:
        """Of the stepping process."""
        return self._process.pid

    def send(self, command: dict[str, Any]) -> None:
        """Queue a command. Nothing happens if the process is dead; its events say so."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(json.dumps(command).encode() + b"\n")

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the process says.

        Raises:
            EngineFailed: it failed or died; says how.
        """
        while True:
            event = await self._next()
            if "failed" in event:
                raise EngineFailed(f"the engine failed: {event['failed']}")
            yield event

    async def aclose(self) -> None:
        """End the process: at its own pace first, then by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                await self._drained()
        except TimeoutError:
            self._process.kill()
            await self._drained()

    async def _hand_shake(self, config: dict[str, Any]) -> None:
        self.send(config)
        async for event in self.events():
            self.ready = event["ready"]
            return

    async def _next(self) -> dict[str, Any]:
        stdout = self._process.stdout
        line = await stdout.readline() if stdout is not None else b""
        if line.endswith(b"\n"):
            event: dict[str, Any] = json.loads(line)
            return event
        raise EngineFailed(f"the engine process {_how_it_ended(await self._process.wait())}")

    async def _drained(self) -> None:
        """Wait for the end, reading on: a full pipe would keep the process alive."""
        if self._process.stdout is not None:
            while await self._process.stdout.read(_MAX_LINE_BYTES):
                pass
        await self._process.wait()


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
