"""Followers of one cold prefix wait for its first request, and never for ever."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.prefix_gate import Prefill, PrefixGate

SHARED = tuple(range(100))
OTHER = tuple(range(500, 600))


async def entered(gate: PrefixGate, prompt: tuple[int, ...]) -> asyncio.Task[Prefill]:
    """A request at the gate, having had every chance to pass it."""
    task = asyncio.create_task(gate.enter(prompt))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_followers_wait_for_the_first() -> None:
    """The first goes at once, those with its prefix when its prefill is done, all together."""
    gate = PrefixGate(64, 60)
    leader = await entered(gate, (*SHARED, 1))
    followers = [await entered(gate, (*SHARED, index)) for index in (2, 3, 4)]
    assert leader.done()
    assert not any(task.done() for task in followers)
    leader.result().done()
    async with asyncio.timeout(1):
        await asyncio.gather(*followers)


async def test_another_prefix_does_not_wait() -> None:
    """Only a shared beginning is worth a wait: not another one, nor a short one."""
    gate = PrefixGate(64, 60)
    await entered(gate, SHARED)
    assert (await entered(gate, OTHER)).done()
    assert (await entered(gate, (*SHARED[:63], *OTHER))).done()


async def test_a_much_longer_leader_is_not_waited_for() -> None:
    """Who shares less than half of the leader's prompt would wait mostly for the rest."""
    gate = PrefixGate(64, 60)
    await entered(gate, SHARED + tuple(range(1000, 2000)))
    assert (await entered(gate, SHARED)).done()


async def test_an_abandoned_leader_is_replaced_by_one() -> None:
    """When the leader is cancelled, one follower goes and the others wait for it."""
    gate = PrefixGate(64, 60)
    leader = await entered(gate, SHARED)
    followers = [await entered(gate, SHARED) for _ in range(3)]
    leader.result().abandoned()
    for _ in range(5):
        await asyncio.sleep(0)
    gone = [task for task in followers if task.done()]
    assert len(gone) == 1
    gone[0].result().done()
    async with asyncio.timeout(1):
        await asyncio.gather(*followers)


async def test_the_wait_has_a_bound() -> None:
    """A leader that never ends holds nobody longer than max_hold_s."""
    gate = PrefixGate(64, 0.02)
    await entered(gate, SHARED)
    async with asyncio.timeout(1):
        await gate.enter(SHARED)


async def test_a_cancelled_follower_leaves_no_trace() -> None:
    """Nobody waits for a request that gave up at the gate."""
    gate = PrefixGate(64, 60)
    leader = await entered(gate, SHARED)
    follower = await entered(gate, SHARED)
    follower.cancel()
    await asyncio.wait((follower,))
    leader.result().done()
    assert (await entered(gate, SHARED)).done()


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "done", "abandon", "cancel"]), st.integers(0, 9)),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_one_leader_at_a_time_and_nobody_left_behind(steps: list[tuple[str, int]]) -> None:
    """In any order of events one cold prefix has one leader, and everybody gets through."""
    asyncio.run(_run(steps))


async def _run(steps: list[tuple[str, int]]) -> None:
    gate = PrefixGate(64, 60)
    waiting: list[asyncio.Task[Prefill]] = []
    passed: list[Prefill] = []
    warm = False

    async def settle() -> None:
        for _ in range(6):
            await asyncio.sleep(0)
        for task in [each for each in waiting if each.done()]:
            waiting.remove(task)
            passed.append(task.result())

    for action, which in steps:
        if action == "enter":
            waiting.append(asyncio.create_task(gate.enter(SHARED)))
        elif action == "cancel" and waiting:
            task = waiting.pop(which % len(waiting))
            task.cancel()
            await asyncio.wait((task,))
        elif action in ("done", "abandon") and passed:
            prefill = passed.pop(which % len(passed))
            warm = warm or action == "done"
            if action == "done":
                prefill.done()
            else:
                prefill.abandoned()
        await settle()
        assert warm or len(passed) <= 1, "two computed one cold prefix"
        assert passed or not waiting, "everybody waits and nobody works"
    while passed or waiting:
        assert passed, "everybody waits and nobody works"
        passed.pop().done()
        await settle()
