"""The workers that are known, one at an address."""

from router.roster import Roster
from router.settings import PoolSettings
from router.worker import State
from tests.unit.router.fleet import Clock, make_worker


async def test_who_goes_takes_nobody_along_who_came_to_his_address() -> None:
    """A target that names an address again may do so before its old watch has ended."""
    roster = Roster(PoolSettings(), Clock())
    old, new = make_worker("w1"), make_worker("w1")
    roster.add(old)
    roster.add(new)
    roster.remove(old)
    assert roster.get(new.address) is new
    roster.set_state(new, State.READY)
    roster.set_state(old, State.UNHEALTHY)
    assert new.model is not None
    assert roster.ready(new.model) == [new]
