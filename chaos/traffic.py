"""Steady clients: they ask without pause while faults come and go, and keep a history."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from chaos.history import Call, History
from chaos.recorder import Recorder
from sidecache.v1 import inference_pb2 as pb

MAX_TOKENS = 12
# Asked over and over, by every tenant in the same words: what the cache is for,
# and where one tenant's answer could reach another.
POPULAR_PROMPTS = 4


class Traffic:
    """Clients of several tenants, each asking one request after another.

    A client's kinds of request come in turn: ``fresh`` (never asked before, so it
    goes through the cache to a worker), ``bypass`` (the same, but the cache is
    not asked: what the cache adds is the difference of the two, taken on the same
    machine in the same second) and ``popular``.

    Args:
        history: the one that all recorders keep.
        recorders: one for each tenant, by tenant.
        kinds: in the order they are asked.
        clients: of each tenant.
    """

    def __init__(
        self,
        history: History,
        recorders: Mapping[str, Recorder],
        kinds: Sequence[str],
        clients: int,
    ) -> None:
        self._history = history
        self._recorders = dict(recorders)
        self._kinds = tuple(kinds)
        self._clients = clients
        self._asked: Counter[tuple[str, str]] = Counter()
        self._may_ask = asyncio.Event()
        self._may_ask.set()
        self._open = 0
        self._ended = asyncio.Condition()

    @property
    def calls(self) -> list[Call]:
        """All calls so far, of all tenants, in the order they were sent."""
        return self._history.calls

    def begin_phase(self, phase: str) -> None:
        """Write this phase on the calls sent from now on."""
        for recorder in self._recorders.values():
            recorder.phase = phase

    def oldest_open(self) -> int:
        """Number of the first call that is under way, or of the next one."""
        return next((call.number for call in self.calls if call.ended is None), len(self.calls))

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            for tenant in self._recorders:
                for client in range(self._clients):
                    group.create_task(self._ask_on(tenant, client))

    async def completed(self, first: int, count: int) -> list[Call]:
        """Wait until the calls ``first`` to ``first + count`` have all ended."""
        async with self._ended:
            await self._ended.wait_for(
                lambda: (
                    len(self.calls) >= first + count
                    and all(call.ended for call in self.calls[first : first + count])
                )
            )
        return self.calls[first : first + count]

    async def pause(self) -> None:
        """Let what is under way end, and ask nothing more."""
        self._may_ask.clear()
        async with self._ended:
            await self._ended.wait_for(lambda: self._open == 0)

    def resume(self) -> None:
        """Ask again."""
        self._may_ask.set()

    async def ask(self, tenant: str, kind: str) -> Call:
        """Send one request of a kind and wait for its end."""
        number = self._asked[tenant, kind]
        self._asked[tenant, kind] += 1
        return await self._recorders[tenant].generate(make_request(kind, number))

    async def _ask_on(self, tenant: str, client: int) -> None:
        turn = client  # clients start at different kinds, so that the mix is even
        while True:
            await self._may_ask.wait()
            self._open += 1
            try:
                await self.ask(tenant, self._kinds[turn % len(self._kinds)])
            finally:
                self._open -= 1
            turn += 1
            async with self._ended:
                self._ended.notify_all()


def make_request(kind: str, number: int) -> pb.GenerateRequest:
    """The ``number``-th request of a kind."""
    if kind == "popular":
        number %= POPULAR_PROMPTS
    mode = pb.CACHE_MODE_BYPASS if kind == "bypass" else pb.CACHE_MODE_DEFAULT
    if kind == "only-if-cached":
        mode = pb.CACHE_MODE_ONLY_IF_CACHED
        kind, number = "popular", number % POPULAR_PROMPTS
    return pb.GenerateRequest(
        text=f"{kind} {number}", max_tokens=MAX_TOKENS, cache=pb.CacheControl(mode=mode)
    )


def kind_of(call: Call) -> str:
    """The kind of a request that :func:`make_request` made."""
    return call.request.text.split()[0]
