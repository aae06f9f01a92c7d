"""The two stages of admission: the door, and a place among the running ones."""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from router.admission.gate import Admission
from router.admission.place import Place
from router.admission.priority import PriorityClass
from router.admission.settings import AdmissionSettings
from router.tape import Tape
from router.tenant_limits import TenantLimits
from router.ticket import Ticket
from router.worker import State, Worker
from sidecache.errors import Overloaded, QuotaExceeded
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import Clock, make_ticket, make_worker

Metadata = tuple[tuple[str, str], ...]


class Gate:
    """An admission of one ready worker, on a clock that stands still."""

    def __init__(self, limits: TenantLimits | None = None, slots: int = 1, **settings: int) -> None:
        self.clock = Clock()
        self.limits = limits or TenantLimits()
        self.worker: Worker = make_worker("w1", clock=self.clock)
        self.worker.state = State.READY
        self.worker.load.most_slots = slots
        self.told: list[Metadata] = []
        self.admission = Admission(
            AdmissionSettings(**{"ahead": 0, **settings}),  # type: ignore[arg-type]
            self.clock,
            lambda: [self.worker],
            lambda _tenant: self.limits,
        )

    def admit(self, tenant: str = "acme") -> AbstractContextManager[None]:
        return self.admission.admit(self.ticket(tenant), self.told.append)

    def ticket(self, tenant: str = "acme") -> Ticket:
        ticket = make_ticket(pb.GenerateRequest(text="x" * 40, max_tokens=100, n=1), tenant)
        return replace(ticket, opened_at=self.clock.now)

    def place(self, tenant: str = "acme", started: bool = True) -> Place:
        ticket = self.ticket(tenant)
        tape = Tape(ticket, 1 << 20, self.clock)
        tape.started = started
        tape.tokens = 7
        tape.finish(pb.Finished(usage=pb.Usage(prompt_tokens=3)))
        return self.admission.claim(ticket, tape, None)


async def test_a_full_router_refuses_and_says_when_to_come_back() -> None:
    """The bound holds, and retry_after_s follows the streams' real durations."""
    gate = Gate(max_streams=2)
    for _ in range(200):
        with gate.admit():
            gate.clock.now += 4.0
    with (
        gate.admit("a"),
        gate.admit("b"),
        pytest.raises(Overloaded, match="bound of 2 streams") as refused,
        gate.admit("c"),
    ):
        pass
    # Two streams of four seconds: one of them ends every two seconds.
    assert refused.value.retry_after_s == pytest.approx(2.0, rel=0.01)
    assert type(refused.value) is Overloaded


async def test_a_tenant_at_its_bound_leaves_room_for_others() -> None:
    """One tenant's bound is its own; the keys file's goes before the setting."""
    gate = Gate(TenantLimits(max_in_flight=1), max_streams=8)
    with gate.admit("greedy"):
        with pytest.raises(QuotaExceeded) as refused, gate.admit("greedy"):
            pass
        with gate.admit("quiet"):
            assert gate.admission.streams == 2
    assert refused.value.subject == "tenant:greedy"


async def test_a_place_is_given_back_whatever_ended_the_stream() -> None:
    """An error inside the block frees its place."""
    gate = Gate(max_streams=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.admit():
            raise ZeroDivisionError
    assert gate.admission.streams == 0


async def test_requests_a_minute_are_refused_with_a_time_and_told_in_metadata() -> None:
    """The third of two a minute waits half a minute; refusals say what is left too."""
    gate = Gate(TenantLimits(requests_per_minute=2))
    for _ in range(2):
        with gate.admit():
            pass
    with pytest.raises(QuotaExceeded, match="2 requests a minute") as refused, gate.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(30.0)
    assert dict(gate.told[-1]) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60.000s",
    }
    gate.clock.now += 30.0
    with gate.admit():
        pass


async def test_tokens_are_estimated_first_and_settled_after() -> None:
    """What a generation reserved and did not use comes back when it ends."""
    gate = Gate(TenantLimits(tokens_per_minute=1000), slots=8)
    quota = gate.admission.quota("acme")
    async with gate.place():
        assert quota.tokens_left is not None
        assert quota.tokens_left <= 1000 - 100
    assert quota.tokens_left == 1000 - (3 + 7)
    async with gate.place(started=False):
        pass
    assert quota.tokens_left == 1000 - (3 + 7)


async def test_a_tenant_without_tokens_is_refused_before_it_waits() -> None:
    """The bucket says no at once, and nothing is held."""
    gate = Gate(TenantLimits(tokens_per_minute=150))
    async with gate.place():
        with pytest.raises(QuotaExceeded, match="150 tokens a minute") as refused:
            await gate.place().__aenter__()
    assert refused.value.retry_after_s > 0
    assert gate.admission.tokens() == {"running": 0, "waiting": 0}


async def test_who_leaves_the_queue_has_used_no_tokens() -> None:
    """What was reserved for a generation that never began comes back."""
    gate = Gate(TenantLimits(tokens_per_minute=1000))
    quota = gate.admission.quota("acme")
    first = await gate.place(started=False).__aenter__()
    leaving = asyncio.ensure_future(gate.place().__aenter__())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await first.__aexit__(None, None, None)
    assert quota.tokens_left == 1000


async def test_a_place_that_is_waited_for_leaves_less_time() -> None:
    """What was waited is not given to the worker again."""
    gate = Gate()
    first = await gate.place().__aenter__()
    second = asyncio.ensure_future(gate.place("umbrella").__aenter__())
    await asyncio.sleep(0)
    assert gate.admission.waiting() == 1
    gate.clock.now += 4.0
    await first.__aexit__(None, None, None)
    place = await second
    assert place.ticket.timeout_s == pytest.approx(gate.ticket().timeout_s - 4.0)
    await place.__aexit__(None, None, None)
    assert gate.admission.tokens() == {"running": 0, "waiting": 0}


async def test_limits_change_while_the_router_runs() -> None:
    """A lower rate counts what was used already; a limit taken away is gone."""
    gate = Gate(TenantLimits(tokens_per_minute=1000), slots=8)
    async with gate.place():
        pass
    gate.limits = TenantLimits(tokens_per_minute=100)
    assert gate.admission.quota("acme").tokens_left == 90
    gate.limits = TenantLimits()
    assert gate.admission.quota("acme").tokens_left is None


async def test_classes_are_told_apart_by_their_keys() -> None:
    """While both wait, an interactive request goes before a batch one that came first."""
    gate = Gate()
    running = await gate.place().__aenter__()
    order: list[str] = []

    async def wait(tenant: str, kind: PriorityClass) -> None:
        ticket = replace(gate.ticket(tenant), priority_class=kind)
        async with gate.admission.claim(ticket, Tape(ticket, 1, gate.clock), None):
            order.append(tenant)

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(wait(f"b{number}", PriorityClass.BATCH))
        await asyncio.sleep(0)
        for number in range(3):
            tasks.create_task(wait(f"i{number}", PriorityClass.INTERACTIVE))
        await asyncio.sleep(0)
        await running.__aexit__(None, None, None)
    # Neither class has had anything: one of each, then the weights speak.
    assert sorted(order[:4]) == ["b0", "i0", "i1", "i2"]
