"""Prompts that end workers: found by what was running where, tried alone, then refused.

A prompt on which an engine crashes would be carried by migration from one worker to the
next until none is left. No single loss says which stream did it, so each loss counts
against everyone who was there; whoever then gets past the place where the worker was lost
is innocent, since a poisonous prompt would have ended the next worker there as well. Who
does not, twice in a row, is tried alone: on a worker that has nobody else, and gets nobody
meanwhile. Only a worker that is lost under it there is proof, and the prompt is refused.
What can have had another cause proves nothing, however often it happens.

So a poisonous prompt costs three workers, and a stream with bad luck costs nothing. In a
fleet that loses workers all the time bad luck explains a lot: nobody is suspected for
whom there are more losses elsewhere than beside it. It does not explain everything, or
several poisonous prompts would excuse each other: from the fourth loss on it is tried alone
anyhow, and refused after the third worker that it was alone on. That is seven, and
eight in two of a thousand schedules, where another suspect took the blame for one of them.
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.crowd import Aboard, Crowd
from router.settings import QuarantineSettings
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import Quarantined
from sidecache.v1 import inference_pb2 as pb

# Losses remembered to tell bad luck by; more than this in the time are bad luck anyway.
_MAX_LOSSES = 1024
# An engine is a little ahead of what was delivered: within so many tokens it is one place.
SAME_PLACE_TOKENS = 16
# So many times the losses that make a suspect, no bad luck keeps it from being tried alone.
_EXCUSED = 2
# Workers lost under it alone that are proof in a fleet that loses others all the time.
_PROOFS_AGAINST_LUCK = 3


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """A worker that was lost, at the clock's time."""

    at: float


@dataclass(slots=True)
class Suspicion:
    """What is held against a prompt.

    Attributes:
        losses: workers lost under it in a row, at the same place of its answer.
        proofs: of those, lost with nobody else to blame.
        tokens: how far the answer was at the first of them.
        until: the clock's time at which all is forgotten.
        is_confirmed: it is refused.
    """

    losses: list[Loss]
    tokens: int
    until: float
    proofs: int = 0
    is_confirmed: bool = False

    def is_behind(self, tokens: int) -> bool:
        """Whether an answer of this length is past the place."""
        return tokens > self.tokens + SAME_PLACE_TOKENS


class Quarantine:
    """What is known of suspicious prompts; bounded, and empty nearly always.

    Args:
        settings: how many losses, and for how long.
        clock: monotonic seconds.
    """

    def __init__(self, settings: QuarantineSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        # The oldest first.
        self._prompts: OrderedDict[bytes, Suspicion] = OrderedDict()
        self._tried: set[bytes] = set()
        # What each prompt that waits has had emptied; its worker may be lost meanwhile.
        self._reserved: dict[bytes, Crowd] = {}
        # Workers lost that no confirmed prompt explains.
        self._unexplained: deque[Loss] = deque(maxlen=_MAX_LOSSES)
        self._trial_over = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held against anybody."""
        return not self._prompts

    @property
    def confirmed(self) -> int:
        """How many prompts are refused now."""
        now = self._clock()
        return sum(one.is_confirmed and now < one.until for one in self._prompts.values())

    def check(self, key: bytes) -> None:
        """Let a prompt pass that is not refused.

        Raises:
            Quarantined: it is.
        """
        self._forget()
        suspicion = self._find(key)
        if suspicion is not None and suspicion.is_confirmed:
            raise Quarantined(
                f"{len(suspicion.losses)} workers were lost under this prompt, the last of them"
                " with nothing else to blame; it is refused for a time",
                retry_after_s=max(0.0, suspicion.until - self._clock()),
            )

    def is_suspected(self, key: bytes) -> bool:
        """Whether a prompt has to be tried alone."""
        suspicion = self._find(key)
        few = self._settings.losses_to_suspect
        if suspicion is None or len(suspicion.losses) < few:
            return False
        return len(suspicion.losses) >= _EXCUSED * few or not self._is_bad_luck(suspicion)

    def may_take_a_chance(self, key: bytes) -> bool:
        """Whether a stream that cannot be tried alone in time may go on beside others."""
        suspicion = self._find(key)
        return suspicion is None or len(suspicion.losses) <= self._settings.losses_to_suspect

    def may_try(self, key: bytes, workers: Sequence[Worker]) -> list[Worker]:
        """Workers that a suspected prompt may have for itself now; one of them at a time."""
        if key in self._tried:
            return []
        return [
            worker
            for worker in workers
            if not worker.leases
            and not worker.load.foreign_sequences
            and not worker.crowd.trials
            and worker.crowd.reserved_for in (None, key)
        ]

    def reserve(self, key: bytes, workers: Sequence[Worker]) -> None:
        """Have a worker emptied for a trial: nobody new comes, and who can go on elsewhere does.

        Never the last one that is open to others. Said again, it asks those that are left.
        """
        if key in self._tried:
            return
        mine = [worker for worker in workers if worker.crowd.reserved_for == key]
        free = [worker for worker in workers if not worker.crowd.is_taken]
        if not mine and len(free) > 1:
            self.release(key)
            mine = [min(free, key=_trouble)]
            mine[0].crowd.reserved_for = key
            self._reserved[key] = mine[0].crowd
        for worker in mine:
            for stream in list(worker.crowd.members):
                stream.make_room()

    @property
    def has_reserved(self) -> bool:
        """Whether a worker is being emptied for somebody."""
        return bool(self._reserved)

    def release(self, key: bytes) -> None:
        """It waits no more."""
        crowd = self._reserved.pop(key, None)
        if crowd is not None and crowd.reserved_for == key:
            crowd.reserved_for = None

    async def wait_for_a_verdict(self) -> None:
        """Return when a trial has ended."""
        await self._trial_over.wait()

    def begins(self, stream: Aboard, crowd: Crowd) -> None:
        """A stream goes to a worker."""
        if self._prompts and self.is_suspected(stream.key):
            stream.on_trial = True
            self._tried.add(stream.key)
        crowd.join(stream)

    def leaves(self, stream: Aboard, crowd: Crowd) -> None:
        """It has left the worker, for whatever reason."""
        if stream.on_trial:
            self._end_trial(stream)
        crowd.leave(stream)

    def got_on(self, stream: Aboard, crowd: Crowd) -> None:
        """A worker has sent something of it: whoever is past the place is innocent."""
        key = stream.key
        suspicion = self._prompts.get(key)
        if suspicion is None or suspicion.is_confirmed or not suspicion.is_behind(stream.tokens):
            return
        del self._prompts[key]
        if stream.on_trial:
            self._end_trial(stream)
            crowd.acquit(stream)

    def completed(self, stream: Aboard) -> None:
        """It ended well: no place is left to be lost at."""
        suspicion = self._prompts.get(stream.key)
        if suspicion is not None and not suspicion.is_confirmed:
            del self._prompts[stream.key]

    def worker_lost(self, crowd: Crowd) -> None:
        """Share the blame for a worker; said again of the same crowd it changes nothing."""
        if crowd.is_lost:
            return
        crowd.is_lost = True
        loss = Loss(self._clock())
        self._unexplained.append(loss)
        suspects = [one for one in crowd.members if one.on_trial and not one.has_progressed]
        for stream in suspects or list(crowd.members):
            alone = stream.on_trial and crowd.has_only_had(stream)
            self._blame(stream, loss, is_proof=alone)

    def _blame(self, stream: Aboard, loss: Loss, *, is_proof: bool) -> None:
        settings, key = self._settings, stream.key
        until = loss.at + settings.memory_s
        suspicion = self._find(key)
        if suspicion is None or suspicion.is_behind(stream.tokens):
            suspicion = Suspicion([], stream.tokens, until)
            self._prompts[key] = suspicion
        elif suspicion.is_confirmed:
            return
        suspicion.losses.append(loss)
        suspicion.until = until
        suspicion.proofs += is_proof
        enough = len(suspicion.losses) > settings.losses_to_suspect
        needed = _PROOFS_AGAINST_LUCK if self._is_bad_luck(suspicion) else 1
        if is_proof and enough and suspicion.proofs >= needed:
            self._confirm(suspicion)
        self._prompts.move_to_end(key)
        while len(self._prompts) > settings.max_prompts:
            self._prompts.popitem(last=False)

    def _forget(self) -> None:
        """Let go of what is over, from the oldest on."""
        now = self._clock()
        while self._prompts and next(iter(self._prompts.values())).until <= now:
            self._prompts.popitem(last=False)

    def _confirm(self, suspicion: Suspicion) -> None:
        suspicion.is_confirmed = True
        suspicion.until = self._clock() + self._settings.refuse_s
        explained = set(suspicion.losses)
        rest = (loss for loss in self._unexplained if loss not in explained)
        self._unexplained = deque(rest, maxlen=_MAX_LOSSES)

    def _is_bad_luck(self, suspicion: Suspicion) -> bool:
        """Whether workers are lost more often without this prompt than with it."""
        since = self._clock() - self._settings.memory_s
        while self._unexplained and self._unexplained[0].at <= since:
            self._unexplained.popleft()
        return len(self._unexplained) > 2 * len(suspicion.losses)

    def _find(self, key: bytes) -> Suspicion | None:
        """What is held against it, unless that is forgotten."""
        suspicion = self._prompts.get(key)
        if suspicion is not None and suspicion.until <= self._clock():
            del self._prompts[key]
            return None
        return suspicion

    @property
    def trial_wait_s(self) -> float:
        """Longest wait for a worker to try a prompt on, or beside such trials."""
        return self._settings.trial_wait_s

    def _end_trial(self, stream: Aboard) -> None:
        self._tried.discard(stream.key)
        self._trial_over.set()
        self._trial_over = asyncio.Event()


def _trouble(worker: Worker) -> tuple[int, int]:
    """What it takes to empty a worker: first those that have to be waited for."""
    staying = sum(not stream.may_make_room for stream in worker.crowd.members)
    return staying, worker.leases


def prompt_key(ticket: Ticket) -> bytes:
    """A tenant's prompt for one model: what an engine can choke on, whatever is sampled of it.

    Of its own tenant only: a refusal must not tell one what another has asked.
    """
    request = ticket.request
    prompt = pb.GenerateRequest(adapter=request.adapter)
    if request.HasField("guided"):
        prompt.guided.CopyFrom(request.guided)
    kind = request.WhichOneof("prompt")
    if kind == "text":
        prompt.text = request.text
    elif kind == "chat":
        prompt.chat.CopyFrom(request.chat)
    elif kind == "token_ids":
        prompt.token_ids.CopyFrom(request.token_ids)
    digest = hashlib.blake2b(ticket.tenant.encode(), digest_size=16)
    digest.update(b"\0" + ticket.model.name.encode() + b"\0")
    digest.update(prompt.SerializeToString(deterministic=True))
    return digest.digest()
