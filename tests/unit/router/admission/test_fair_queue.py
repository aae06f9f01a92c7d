"""Start-time fair queueing: shares, no starvation, and sums that stay right."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.admission.fair_queue import Claim, FairQueue
from router.admission.priority import PriorityClass

WEIGHTS = {
    PriorityClass.INTERACTIVE: 100.0,
    PriorityClass.STANDARD: 10.0,
    PriorityClass.BATCH: 1.0,
}
STANDARD = PriorityClass.STANDARD


def claim(
    tenant: str, cost: int = 10, weight: float = 1.0, kind: PriorityClass = STANDARD, **more: int
) -> Claim:
    return Claim(tenant, kind, weight, cost, **more)


def start_next(queue: FairQueue) -> Claim:
    found = queue.first()
    assert found is not None
    queue.start(found, waited=True)
    return found


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0]), min_size=2, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_tenants_that_always_wait_get_what_their_weights_say(
    weights: list[float], seed: int
) -> None:
    """Over every interval, tokens over weight differ by one request of each at most."""
    draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
    queue = FairQueue(WEIGHTS)
    most = 0

    def arrive(number: int) -> None:
        nonlocal most
        cost = draw.randint(1, 1000)
        most = max(most, cost)
        queue.push(claim(str(number), cost, weights[number]))

    for number in range(len(weights)):
        for _ in range(3):
            arrive(number)
    served = Counter[int]()
    marks = [Counter(served)]
    for _ in range(300):
        started = start_next(queue)
        served[int(started.tenant)] += started.cost
        arrive(int(started.tenant))
        marks.append(Counter(served))
    for _ in range(50):
        begin, end = sorted(draw.sample(range(len(marks)), 2))
        shares = [(marks[end][n] - marks[begin][n]) / weight for n, weight in enumerate(weights)]
        for f, w_f in enumerate(weights):
            for g, w_g in enumerate(weights):
                assert abs(shares[f] - shares[g]) <= most / w_f + most / w_g + 1e-6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_nobody_who_waits_is_starved(seed: int) -> None:
    """The least class's only request starts after a bounded amount of everybody else's work."""
    draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
    queue = FairQueue(WEIGHTS)
    lonely = claim("lonely", 500, kind=PriorityClass.BATCH)

    def arrive(tenant: str, kind: PriorityClass) -> None:
        queue.push(claim(tenant, draw.randint(1, 100), 10.0, kind))

    for tenant in "abcd":
        arrive(tenant, PriorityClass.INTERACTIVE)
        arrive(tenant, PriorityClass.STANDARD)
        arrive(tenant, PriorityClass.BATCH)
    queue.push(lonely)
    # Each batch tenant may go first by one request over weight, each class by its weight's share.
    bound = (4 * 100 + 10 * 100) * (1 + 100 + 10) + 111 * 100
    work = 0
    while True:
        started = start_next(queue)
        if started is lonely:
            break
        work += started.cost
        assert work <= bound
        arrive(started.tenant, started.priority_class)


def test_idleness_earns_nothing_and_costs_nothing() -> None:
    """Who comes late starts beside those who worked before, not far ahead of them."""
    queue = FairQueue(WEIGHTS)
    for _ in range(100):
        queue.start(claim("busy"), waited=False)
    for _ in range(10):
        queue.push(claim("busy"))
        queue.push(claim("new"))
    first = Counter(start_next(queue).tenant for _ in range(10))
    assert abs(first["busy"] - first["new"]) <= 1


def test_what_was_not_used_is_not_charged() -> None:
    """A tenant whose answers end early gets more of them in."""
    queue = FairQueue(WEIGHTS)
    for _ in range(60):
        queue.push(claim("short", 100))
        queue.push(claim("long", 100))
    served = Counter[str]()
    for _ in range(60):
        started = start_next(queue)
        served[started.tenant] += 1
        queue.settle(started, 25 if started.tenant == "short" else 100)
    assert served["short"] == pytest.approx(48, abs=2)


def test_a_tenants_own_requests_go_by_priority_then_by_age() -> None:
    """Priority orders a tenant's own, and takes nothing from others."""
    queue = FairQueue(WEIGHTS)
    low, first, second = claim("a", priority=-3), claim("a", priority=5), claim("a", priority=5)
    other = claim("b")
    for each in (low, first, second, other):
        queue.push(each)
    order = [start_next(queue) for _ in range(4)]
    assert [each for each in order if each.tenant == "a"] == [first, second, low]
    assert order.index(other) <= 1


def test_who_fills_the_queue_makes_room() -> None:
    """The newest claim of the tenant with most tokens for its weight is named."""
    queue = FairQueue(WEIGHTS)
    assert queue.most_excessive() is None
    heavy = [claim("heavy", 100, weight=10.0) for _ in range(5)]
    greedy = [claim("greedy", 100) for _ in range(3)]
    for each in (*heavy, *greedy):
        queue.push(each)
    assert queue.most_excessive() is greedy[-1]


def test_the_work_before_a_claim_is_what_is_served_before_it() -> None:
    """The estimate agrees with the order that really comes, within a request of each tenant."""
    for seed in range(50):
        draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
        queue = FairQueue(dict.fromkeys(PriorityClass, 1.0))
        for _ in range(40):
            tenant = draw.choice("abcd")
            weight = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}[tenant]
            kind = draw.choice(list(PriorityClass))
            queue.push(claim(tenant, draw.randint(50, 100), weight, kind))
        mine = claim(draw.choice("abe"), 100, 1.0, draw.choice(list(PriorityClass)))
        expected = queue.work_before(mine)
        queue.push(mine)
        work = 0
        while (started := start_next(queue)) is not mine:
            work += started.cost
        # One request of each tenant in each class.
        assert abs(work - expected) <= 100 * 12 + 1e-6


class Sums(RuleBasedStateMachine):
    """Whatever comes, starts and leaves: counts are those of the claims that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(WEIGHTS)
        self.waiting: list[Claim] = []
        self.running: list[Claim] = []

    @rule(
        tenant=st.sampled_from("abc"),
        cost=st.integers(1, 100),
        kind=st.sampled_from(PriorityClass),
        priority=st.integers(-3, 3),
    )
    def push(self, tenant: str, cost: int, kind: PriorityClass, priority: int) -> None:
        new = claim(tenant, cost, 1.0, kind, priority=priority)
        self.queue.push(new)
        self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        self.queue.remove(gone)
        self.waiting.remove(gone)

    @precondition(lambda self: self.waiting)
    @rule()
    def start(self) -> None:
        started = start_next(self.queue)
        self.waiting.remove(started)
        self.running.append(started)

    @precondition(lambda self: self.running)
    @rule(share=st.floats(0, 2))
    def settle(self, share: float) -> None:
        over = self.running.pop()
        self.queue.settle(over, int(over.cost * share))

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(each.cost for each in self.waiting)
        assert set(self.queue) == set(self.waiting)
        assert (self.queue.first() is None) == (not self.waiting)


TestSums = Sums.TestCase
TestSums.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
