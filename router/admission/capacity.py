"""How much of one model the fleet can run at once, as far as its workers say."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from router.admission.settings import AdmissionSettings
from router.model import ServedModel
from router.worker import Worker


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may be held at once; None: not known, so not bounded.

    Attributes:
        slots: sequences.
        tokens: prompts and all that may be generated.
        workers: that are ready.
    """

    slots: int | None
    tokens: int | None
    workers: int


def fleet_capacity(
    workers: Iterable[Worker], model: ServedModel, settings: AdmissionSettings
) -> Capacity:
    """The capacity of a model's workers for this router.

    Streams of workers that get no new ones (cordoned, leaving, lost) go on there, so
    their slots count for as long as they take. What other routers run is taken off, down to
    ``min_share``: two routers must not each take the fleet for full of the other's streams.
    """
    slots = tokens = ready = 0
    knows_slots = knows_tokens = True
    for worker in workers:
        if worker.model != model:
            continue
        if not worker.is_ready:
            slots += worker.leases
            continue
        ready += 1
        load = worker.load
        knows_slots = knows_slots and load.most_slots > 0
        knows_tokens = knows_tokens and load.kv_tokens > 0
        least = math.ceil(load.most_slots * settings.min_share)
        slots += max(load.most_slots - load.foreign_sequences, least) + settings.ahead
        tokens += int(load.kv_tokens * settings.kv_overcommit)
    return Capacity(
        slots=settings.max_running or (slots if knows_slots and ready else None),
        tokens=settings.max_running_tokens or (tokens if knows_tokens and ready else None),
        workers=ready,
    )


class CachedCapacity:
    """A model's capacity, counted again when it is older than a tenth of a second.

    Args:
        workers: all that the pool knows.
    """

    _FRESH_S = 0.1

    def __init__(
        self,
        workers: Callable[[], Iterable[Worker]],
        model: ServedModel,
        settings: AdmissionSettings,
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._model = model
        self._settings = settings
        self._clock = clock
        self._value = Capacity(None, None, 0)
        self._stale_at = -math.inf

    def __call__(self) -> Capacity:
        now = self._clock()
        if now >= self._stale_at:
            self._value = fleet_capacity(self._workers(), self._model, self._settings)
            self._stale_at = now + self._FRESH_S
        return self._value

    def reconfigure(self, settings: AdmissionSettings) -> None:
        """Count by these settings from now on."""
        self._settings = settings
        self.forget()

    def forget(self) -> None:
        """A worker came or went: count anew."""
        self._stale_at = -math.inf
