"""Holds requests back while another one prefills the prefix they share.

Four requests with one cold prefix, all at once, compute it four times; if three
wait for the first, they find it in the KV cache. Independent of any engine.
"""

import asyncio
from collections.abc import Sequence


class Prefill:
    """A request that may be computing a prefix others wait for."""

    def __init__(self, gate: "PrefixGate", token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gate = gate

    def done(self) -> None:
        """The prefix is in the cache: whoever waits may go."""
        self._end(warm=True)

    def abandoned(self) -> None:
        """It was cancelled or failed: one of those who wait takes its place."""
        self._end(warm=False)

    def _end(self, *, warm: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(warm)
            self._gate.forget(self)


class PrefixGate:
    """Lets the first request of each cold prefix through, and the others after it.

    Args:
        min_shared_tokens: a shorter common prefix is not worth a wait.
        max_hold_s: longest wait, whatever the leaders do.
    """

    def __init__(self, min_shared_tokens: int, max_hold_s: float) -> None:
        self._min_shared_tokens = min_shared_tokens
        self._max_hold_s = max_hold_s
        # At most as many as the engine has slots.
        self._leaders: list[Prefill] = []

    async def enter(self, token_ids: Sequence[int]) -> Prefill:
        """Wait if another request is at the same prefix; then go.

        The caller must end the prefill it gets: ``done`` or ``abandoned``.
        """
        prefill = Prefill(self, token_ids)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._max_hold_s
        while (leader := self._leader_of(token_ids)) is not None:
            remaining_s = until - loop.time()
            if remaining_s <= 0:
                return prefill
            await asyncio.wait((leader.ended,), timeout=remaining_s)
            if leader.ended.done() and leader.ended.result():
                # Warm now: no cause to lead others, or they would go one by one.
                return prefill
        self._leaders.append(prefill)
        return prefill

    def forget(self, prefill: Prefill) -> None:
        """Take an ended prefill off the list."""
        if prefill in self._leaders:
            self._leaders.remove(prefill)

    def _leader_of(self, token_ids: Sequence[int]) -> Prefill | None:
        for leader in self._leaders:
            if self._worth_waiting(leader.token_ids, token_ids):
                return leader
        return None

    def _worth_waiting(self, leader: Sequence[int], follower: Sequence[int]) -> bool:
        """Whether they share enough, and the leader does not do much else besides."""
        need = max(self._min_shared_tokens, len(leader) // 2)
        return min(len(leader), len(follower)) >= need and leader[:need] == follower[:need]
