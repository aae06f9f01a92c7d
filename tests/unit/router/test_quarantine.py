"""Who is blamed for a lost worker, who is tried alone, and who is refused."""

import pytest

from router.crowd import Crowd
from router.lease import Lease
from router.quarantine import Quarantine
from router.settings import QuarantineSettings
from sidecache.errors import Quarantined
from tests.unit.router.fleet import Clock, make_worker


class Stream:
    """One worker's part of a stream."""

    def __init__(self, key: bytes, tokens: int = 0, *, has_progressed: bool = False) -> None:
        self.key = key
        self.tokens = tokens
        self.has_progressed = has_progressed
        self.on_trial = False
        self.asked_to_leave = 0

    def leave_silent_worker(self) -> None:
        """Nobody is silent here."""

    @property
    def may_make_room(self) -> bool:
        """Whether it has begun."""
        return self.has_progressed

    def make_room(self) -> None:
        """Counted, or done."""
        self.asked_to_leave += 1


def lose(quarantine: Quarantine, *streams: Stream) -> None:
    crowd = Crowd()
    for stream in streams:
        quarantine.begins(stream, crowd)
    quarantine.worker_lost(crowd)
    quarantine.worker_lost(crowd)
    for stream in streams:
        quarantine.leaves(stream, crowd)


def others(count: int) -> list[Stream]:
    return [Stream(b"innocent %d" % number) for number in range(count)]


def test_two_losses_are_a_suspicion_and_a_third_alone_is_proof() -> None:
    """However many ran beside it at first, beside others nothing is; the refusal ends by itself."""
    clock = Clock()
    quarantine = Quarantine(QuarantineSettings(refuse_s=30.0), clock)
    lose(quarantine, Stream(b"bad"), *others(9))
    assert not quarantine.is_suspected(b"bad")
    lose(quarantine, Stream(b"bad"))
    assert quarantine.is_suspected(b"bad")
    lose(quarantine, Stream(b"bad"), *others(5))
    quarantine.check(b"bad")
    lose(quarantine, Stream(b"bad"))
    with pytest.raises(Quarantined) as refused:
        quarantine.check(b"bad")
    assert refused.value.retry_after_s == 30.0
    for stream in others(9):
        quarantine.check(stream.key)
    clock.now += 31.0
    quarantine.check(b"bad")


def test_whoever_gets_past_the_place_is_innocent() -> None:
    """A next token clears a stream that was there twice."""
    quarantine = Quarantine(QuarantineSettings(), Clock())
    lose(quarantine, Stream(b"unlucky", 40), *others(3))
    lose(quarantine, Stream(b"unlucky", 40))
    assert quarantine.is_suspected(b"unlucky")
    quarantine.got_on(Stream(b"unlucky", 60), Crowd())
    assert not quarantine.is_suspected(b"unlucky")


def test_a_suspect_takes_the_blame_from_those_beside_it() -> None:
    """A stream that only sat next to it the third time is not suspected for that."""
    quarantine = Quarantine(QuarantineSettings(), Clock())
    lose(quarantine, Stream(b"bad"))
    lose(quarantine, Stream(b"bad"), Stream(b"neighbour"))
    lose(quarantine, Stream(b"bad"), Stream(b"neighbour"))
    assert not quarantine.is_suspected(b"neighbour")


def test_a_fleet_that_loses_workers_all_the_time_suspects_nobody() -> None:
    """More losses elsewhere than beside it are bad luck."""
    clock = Clock()
    quarantine = Quarantine(QuarantineSettings(memory_s=60.0), clock)
    for number in range(10):
        lose(quarantine, Stream(b"other %d" % number))
    for _ in range(3):
        lose(quarantine, Stream(b"unlucky"))
    quarantine.check(b"unlucky")
    assert not quarantine.is_suspected(b"unlucky")


async def test_one_suspect_a_worker_and_one_trial_a_prompt() -> None:
    """A second suspect is tried elsewhere; a second copy of the first waits."""
    quarantine = Quarantine(QuarantineSettings(), Clock())
    workers = [make_worker("w1"), make_worker("w2")]
    for _ in range(2):
        lose(quarantine, Stream(b"a"), Stream(b"b"))
    trial = Stream(b"a")
    quarantine.begins(trial, workers[0].crowd)
    assert quarantine.may_try(b"b", workers) == workers[1:]
    assert quarantine.may_try(b"a", workers) == []
    quarantine.leaves(trial, workers[0].crowd)
    assert quarantine.may_try(b"a", workers) == workers


async def test_a_worker_with_others_is_reserved_until_it_is_empty() -> None:
    """Of two busy workers one is kept free of newcomers; the last one never is."""
    quarantine = Quarantine(QuarantineSettings(), Clock())
    workers = [make_worker("w1"), make_worker("w2")]
    leases = [Lease(worker) for worker in workers]
    aboard = [Stream(b"here"), Stream(b"there", has_progressed=True)]
    for stream, worker in zip(aboard, workers, strict=True):
        quarantine.begins(stream, worker.crowd)
    assert quarantine.may_try(b"a", workers) == []
    quarantine.reserve(b"a", workers)
    quarantine.reserve(b"a", workers)
    quarantine.reserve(b"b", workers)
    # The one whose stream can go on elsewhere; asked again as long as it stays.
    assert [worker.crowd.is_taken for worker in workers] == [False, True]
    assert [stream.asked_to_leave for stream in aboard] == [0, 2]
    leases[1].release()
    assert quarantine.may_try(b"a", workers) == workers[1:]
    assert quarantine.may_try(b"b", workers) == []
    quarantine.release(b"a")
    assert quarantine.may_try(b"b", workers) == workers[1:]


def test_what_a_confirmed_prompt_did_explains_nothing_else_away() -> None:
    """Its own losses leave the tally of bad luck, and those of others stay."""
    clock = Clock()
    quarantine = Quarantine(QuarantineSettings(), clock)
    for key in (b"bad", b"bad", b"other", b"another", b"bad"):
        clock.now += 1.0
        lose(quarantine, Stream(key))
    with pytest.raises(Quarantined):
        quarantine.check(b"bad")
    assert [loss.at for loss in quarantine._unexplained] == [103.0, 104.0]


def test_poisonous_prompts_do_not_excuse_each_other_for_ever() -> None:
    """However many workers are lost elsewhere: four losses, and three alone are proof."""
    quarantine = Quarantine(QuarantineSettings(), Clock())
    for _ in range(2):
        for number in range(9):
            lose(quarantine, Stream(b"bad %d" % number))
    assert not quarantine.is_suspected(b"bad 0")
    for _ in range(2):
        lose(quarantine, Stream(b"bad 0"))
    assert quarantine.is_suspected(b"bad 0")
    for _ in range(3):
        quarantine.check(b"bad 0")
        lose(quarantine, Stream(b"bad 0"))
    with pytest.raises(Quarantined):
        quarantine.check(b"bad 0")


def test_company_that_came_or_went_proves_nothing() -> None:
    """Alone at the end is not alone: who left a moment ago may have done it."""
    for early in (True, False):
        quarantine = Quarantine(QuarantineSettings(), Clock())
        for _ in range(3):
            lose(quarantine, Stream(b"unlucky"), *others(1))
        crowd, stream, other = Crowd(), Stream(b"unlucky"), Stream(b"other")
        for one in (other, stream) if early else (stream, other):
            quarantine.begins(one, crowd)
        quarantine.leaves(other, crowd)
        quarantine.worker_lost(crowd)
        quarantine.check(b"unlucky")


def test_the_table_is_bounded() -> None:
    """The oldest is forgotten first."""
    quarantine = Quarantine(QuarantineSettings(max_prompts=3), Clock())
    lose(quarantine, *others(50))
    assert len(quarantine._prompts) == 3
