"""Sequence slots of an engine, and the bounded queue before them."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from sidecache.errors import Overloaded


@dataclass(eq=False, slots=True)
class Slot:
    """A place for ``sequences`` sequences; granted when :attr:`granted` is done."""

    sequences: int
    prompt_tokens: int
    granted: asyncio.Future[None] = field(repr=False)
    priority: int = 0
    released: bool = False


class Slots:
    """Higher priority first, then first come; whoever does not fit waits, up to a limit.

    Args:
        max_sequences: sequences that run at once.
        max_waiting: requests that may wait.
        retry_after_s: what a refused caller is told.
    """

    def __init__(self, max_sequences: int, max_waiting: int, retry_after_s: float = 1.0) -> None:
        self.max_sequences = max_sequences
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._running = 0
        self._waiting: deque[Slot] = deque()

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return sum(slot.sequences for slot in self._waiting)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return sum(slot.prompt_tokens for slot in self._waiting)

    def request(self, sequences: int, prompt_tokens: int, priority: int = 0) -> Slot:
        """Ask for a slot without waiting: it may be granted already, or queued.

        Args:
            sequences: at most ``max_sequences``, or it would wait for ever.
            prompt_tokens: counted for as long as it waits.
            priority: waits before everything lower; of an engine without, always 0.

        Raises:
            Overloaded: the queue is full.
        """
        granted = asyncio.get_running_loop().create_future()
        slot = Slot(sequences, prompt_tokens, granted, priority)
        if not self._waiting and self._fits(slot):
            self._grant(slot)
        elif len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"the engine runs {self._running} of {self.max_sequences} sequences and "
                f"{len(self._waiting)} of {self._max_waiting} requests wait",
                retry_after_s=self._retry_after_s,
            )
        else:
            self._waiting.insert(self._place(priority), slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back, granted or not. Safe to call twice."""
        if slot.released:
            return
        slot.released = True
        if slot.granted.done() and not slot.granted.cancelled():
            self._running -= slot.sequences
        else:
            slot.granted.cancel()
            self._waiting.remove(slot)
        while self._waiting and self._fits(self._waiting[0]):
            self._grant(self._waiting.popleft())

    def _place(self, priority: int) -> int:
        """Behind everyone who waits with at least this priority."""
        place = len(self._waiting)
        while place and self._waiting[place - 1].priority < priority:
            place -= 1
        return place

    def _fits(self, slot: Slot) -> bool:
        return self._running + slot.sequences <= self.max_sequences

    def _grant(self, slot: Slot) -> None:
        self._running += slot.sequences
        slot.granted.set_result(None)
