"""The processes that vLLM steps in: started with what they said kept, watched, ended."""

import asyncio
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from inference_svc.engines.engine_stderr import EngineStderr
from inference_svc.engines.vllm_setup import advice
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import EngineFailed, SetupError

_MAX_CAUSE_CHARACTERS = 400


class VllmProcesses:
    """One engine of vLLM's.

    Args:
        model_path: the checkpoint folder.
        died: told why, once one of the processes has ended by itself.

    Attributes:
        engine: the AsyncLLM; None before :meth:`start` and after :meth:`aclose`.
    """

    def __init__(
        self, model_path: Path, settings: VllmSettings, died: Callable[[EngineFailed], object]
    ) -> None:
        self.engine: Any = None
        self._model_path = model_path
        self._settings = settings
        self._died = died
        self._stderr = EngineStderr()
        self._sentinels: list[int] = []
        self._api: ModuleType

    @property
    def pids(self) -> list[int]:
        """Of those on this machine."""
        return [each.pid for each in self._api.processes(self.engine) if each.pid is not None]

    async def start(self, api: ModuleType, **more: Any) -> None:
        """Start them; takes seconds to minutes.

        Args:
            api: :mod:`inference_svc.engines.vllm_api`.
            **more: as its ``start`` takes them.

        Raises:
            SetupError: vLLM could not start, and why.
        """
        self._api = api
        with self._stderr.tapped():
            starting = asyncio.create_task(
                asyncio.to_thread(api.start, self._model_path, self._settings, **more)
            )
            try:
                self.engine = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # A thread cannot be stopped: what it starts is ended as soon as it is there.
                starting.add_done_callback(self._end_late)
                raise
            except Exception as error:
                raise self.not_started(error) from error
        self._watch()

    async def aclose(self) -> None:
        """End them; takes up to a few seconds. Safe to call twice."""
        loop = asyncio.get_running_loop()
        for sentinel in self._sentinels:
            loop.remove_reader(sentinel)
        self._sentinels = []
        if self.engine is not None:
            engine, self.engine = self.engine, None
            await asyncio.to_thread(self._api.shut_down, engine)

    def not_started(self, error: Exception) -> SetupError:
        """Why it does not serve, in vLLM's own words where it has said something."""
        cause = self._stderr.cause() or f"{type(error).__name__}: {error}"
        cause = " ".join(cause.split())[:_MAX_CAUSE_CHARACTERS]
        return SetupError(f"vLLM could not start with {self._model_path}: {cause}{advice(cause)}")

    def death(self, code: int | None = None) -> EngineFailed:
        """How they ended, in vLLM's own words where it has said something."""
        cause = self._stderr.cause()
        for process in self._api.processes(self.engine):
            code = process.exitcode if code is None else code
        how = "" if code is None else f" with exit code {code}"
        if code is not None and code < 0:
            how = f" by signal {-code}"
        return EngineFailed(f"the engine process ended{how}" + (f": {cause}" if cause else ""))

    def _watch(self) -> None:
        """Notice their death at once, busy or not."""
        loop = asyncio.get_running_loop()
        for process in self._api.processes(self.engine):
            self._sentinels.append(process.sentinel)
            loop.add_reader(process.sentinel, self._process_ended, process)

    def _process_ended(self, process: BaseProcess) -> None:
        asyncio.get_running_loop().remove_reader(process.sentinel)
        self._sentinels.remove(process.sentinel)
        process.join(0)
        self._died(self.death(process.exitcode))

    def _end_late(self, starting: "asyncio.Task[Any]") -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._api.shut_down(starting.result())
