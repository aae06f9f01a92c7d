"""A worker that comes and goes has to be well for a while before it is used again."""

import asyncio
from itertools import pairwise

import grpc

from router.damping import Damping
from router.roster import Roster
from router.settings import PoolSettings
from router.worker import State
from tests.unit.router.fleet import Clock, make_worker

SETTINGS = PoolSettings(flap_losses=3, flap_half_life_s=10, flap_hold_s=1, max_flap_hold_s=20)


def lose(damping: Damping, clock: Clock, times: int, every_s: float) -> list[float]:
    """The waits after each of so many losses."""
    waits = []
    for _ in range(times):
        damping.lost()
        waits.append(damping.hold_s())
        clock.now += every_s
    return waits


def test_a_restart_now_and_then_costs_no_wait() -> None:
    """A worker replaced every few seconds, as in a rolling change, is used at once."""
    clock = Clock()
    assert set(lose(Damping(SETTINGS, clock), clock, 100, every_s=6.0)) == {0.0}


def test_a_flapping_worker_waits_longer_each_time_up_to_a_bound() -> None:
    """The wait grows with every loss and never beyond its bound."""
    clock = Clock()
    waits = lose(Damping(SETTINGS, clock), clock, 20, every_s=0.5)
    assert waits[:3] == [0.0, 0.0, 0.0]
    grown = [wait for wait in waits if wait]
    assert all(earlier <= later for earlier, later in pairwise(grown))
    assert grown[-1] == SETTINGS.max_flap_hold_s


def test_a_quiet_time_is_forgiven() -> None:
    """After some half-lives nothing is held against it."""
    clock = Clock()
    damping = Damping(SETTINGS, clock)
    lose(damping, clock, 10, every_s=0.5)
    assert damping.hold_s()
    clock.now += 40
    assert not damping.hold_s()


async def test_a_held_worker_is_used_only_where_there_is_no_other() -> None:
    """Two workers: the flapping one waits; alone it is used, and when the wait is over too."""
    clock = Clock()
    settings = SETTINGS.model_copy(update={"flap_hold_s": 0.01, "max_flap_hold_s": 0.02})
    roster = Roster(settings, clock)
    calm, flapping = make_worker("1", clock=clock), make_worker("2", clock=clock)
    for worker in (calm, flapping):
        roster.add(worker)
        roster.set_state(worker, State.READY)
    assert calm.model is not None
    for _ in range(6):
        roster.set_state(flapping, State.UNHEALTHY)
        clock.now += 0.1
        roster.set_state(flapping, State.READY)
    assert roster.ready(calm.model) == [calm]
    roster.set_state(calm, State.UNHEALTHY)
    assert roster.ready(calm.model) == [flapping]
    roster.set_state(calm, State.READY)
    async with asyncio.timeout(5):
        while roster.ready(calm.model) != [calm, flapping]:
            await roster.wait_for_change()
    assert isinstance(flapping.channel, grpc.aio.Channel)


async def test_workers_of_another_revision_are_never_mixed() -> None:
    """One that answers for another checkpoint is a model of its own; most workers decide."""
    roster = Roster(SETTINGS, Clock())
    workers = [make_worker(name) for name in "123"]
    odd = workers[2]
    assert odd.model is not None
    facts = type(odd.model)
    odd.model = facts(**{f: getattr(odd.model, f) for f in facts.__slots__} | {"revision": "r2"})
    for worker in workers:
        roster.add(worker)
        roster.set_state(worker, State.READY)
    model = roster.models["m"]
    assert (model.revision, roster.ready(model)) == ("r1", workers[:2])
    assert roster.ready(odd.model) == [odd]
