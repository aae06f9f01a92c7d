"""A service as a process of its own, to be killed, hung and brought back.

::

    async with ServiceProcess.start("cache_svc", folder, env) as cache:
        cache.hang()                          # SIGSTOP: alive, and silent
        assert await cache.is_hung()          # the kernel says so
        cache.resume()
        assert await cache.kill() == -signal.SIGKILL

Leaving the block kills the process with its group; a leash (:mod:`chaos.leash`)
does so should this process be killed itself.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

READY_TIMEOUT_S = 20.0
POLL_S = 0.005
# Settings of the surrounding shell must not leak into an experiment.
_FOREIGN = ("SIDECACHE_", "OTEL_", "GRPC_")
# Where the settings object of each service reads its fields.
ENV_PREFIX = {
    "cache_svc": "SIDECACHE_CACHE_",
    "inference_svc": "SIDECACHE_WORKER_",
    "router": "SIDECACHE_ROUTER_",
}


class ServiceDied(Exception):
    """The process ended, or never got ready; carries its last words."""


class ServiceProcess:
    """One running service.

    Attributes:
        name: of this process in logs and reports.
        module: what ``python -m`` runs.
        address: where it serves, with the real port.
    """

    def __init__(
        self, name: str, module: str, process: asyncio.subprocess.Process, log: Path
    ) -> None:
        self.name = name
        self.module = module
        self.address = ""
        self._process = process
        self._log = log

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        module: str,
        folder: Path,
        settings: Mapping[str, str],
        *,
        name: str = "",
        env_prefix: str = "",
        ready_timeout_s: float = READY_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator["ServiceProcess"]:
        """Start ``python -m module`` and wait until it serves.

        Args:
            module: ``cache_svc``, ``inference_svc`` or ``router``.
            folder: for its log and its ready file; must exist.
            settings: fields of its settings object, nested ones written with
                ``__``: ``{"scripted__ttft_s": "0.1"}``. It listens on a free port
                of 127.0.0.1 unless ``server__listen`` says otherwise.
            name: unique in the folder; the module's by default.
            env_prefix: of its settings; known for the three services.
            ready_timeout_s: from the start of the process to its ready file.
            environment: more variables, which are no settings.

        Raises:
            ServiceDied: it ended, or was not ready in time.
        """
        name = name or module
        ready = folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        log = folder / f"{name}.log"
        fields = {"server__listen": "127.0.0.1:0", "server__ready_file": str(ready), **settings}
        prefix = env_prefix or ENV_PREFIX[module]
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        env |= {prefix + field.upper(): value for field, value in fields.items()}
        env |= environment or {}
        service = cls(name, module, await _spawn(module, env, log), log)
        try:
            service.address = await service._ready(ready, ready_timeout_s)
            yield service
        finally:
            await service._end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As waitpid told: None while it runs, ``-signal`` when a signal ended it."""
        return self._process.returncode

    def state(self) -> str:
        """One letter from /proc: R, S or D alive, T stopped, Z or X dead; X too when gone."""
        # The name in parentheses may itself hold parentheses and blanks.
        fields = _read(Path(f"/proc/{self.pid}/stat")).rpartition(")")[2].split()
        return fields[0] if fields else "X"

    def hang(self) -> None:
        """SIGSTOP: it keeps its sockets and says nothing more."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    async def is_hung(self, within_s: float = 1.0) -> bool:
        """Whether the kernel has stopped it; a signal takes effect a little later."""
        return await self._reaches("T", within_s)

    async def is_running(self, within_s: float = 1.0) -> bool:
        """Whether it can run: neither stopped nor dead."""
        return await self._reaches("RSD", within_s)

    async def kill(self) -> int:
        """SIGKILL, also of a hung one; returns the exit code, -9 when that is what ended it."""
        self._send(signal.SIGKILL)
        return await self._process.wait()

    async def terminate(self, within_s: float = 15.0) -> int:
        """SIGTERM, and wait for it to drain.

        Returns:
            Its exit code.

        Raises:
            TimeoutError: it was still there after ``within_s``.
        """
        self._send(signal.SIGTERM)
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines it wrote, stdout and stderr together."""
        return "\n".join(_read(self._log).splitlines()[-lines:])

    def _send(self, number: signal.Signals) -> None:
        if self._process.returncode is not None:
            raise ServiceDied(
                f"{self.name} was to get {number.name}, but had ended already with "
                f"{self._process.returncode}:\n{self.log_tail()}"
            )
        # To the whole group: a service may have started helpers.
        os.killpg(self.pid, number)

    async def _reaches(self, states: str, within_s: float) -> bool:
        return await _eventually(lambda: self.state() in states, within_s)

    async def _ready(self, ready: Path, timeout_s: float) -> str:
        await _eventually(lambda: ready.exists() or self._process.returncode is not None, timeout_s)
        # Whole as soon as it is there: the service renames it into place.
        address = _read(ready)
        if address:
            return address
        if self._process.returncode is None:
            problem = f"was not ready within {timeout_s} s"
        else:
            problem = f"ended with {self._process.returncode} before it was ready"
        raise ServiceDied(f"{self.name} {problem}:\n{self.log_tail()}")

    async def _end(self) -> None:
        # Once it was reaped, its number may belong to somebody else's group.
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()


async def _spawn(module: str, env: Mapping[str, str], log: Path) -> asyncio.subprocess.Process:
    leash = (sys.executable, "-m", "chaos.leash", str(os.getpid()))
    with log.open("ab") as sink:
        return await asyncio.create_subprocess_exec(
            *leash,
            *(sys.executable, "-m", module),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            # A group of its own, so that a Ctrl-C at the terminal ends the
            # experiment in order instead of its services under it.
            start_new_session=True,
        )


async def _eventually(is_so: Callable[[], bool], within_s: float) -> bool:
    """Look again and again at another process, which has no event to await."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while not is_so():
        if asyncio.get_running_loop().time() >= deadline_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _read(path: Path) -> str:
    """The text of a small file, or nothing where there is none (any more)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return path.read_text(errors="replace").strip()
    return ""
