"""What every RoutingPolicy promises, whichever the router runs."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fleet_replay import Fleet, Replay
from benchmarks.prefix_routing import policies
from benchmarks.traces import TraceRequest
from cache_svc.prefix_index import PrefixIndex
from router.routing.choice import DEFAULT_POLICY, GO_BY_PREFIX, POLICIES, make_policy
from router.routing.cost import Weights
from router.routing.policy import Candidate, PromptShape, RoutingPolicy

EVERY = policies(Weights())
every_policy = pytest.mark.parametrize("policy", EVERY.values(), ids=EVERY)
# A conversation's hash alone knows no load, and the turn none either.
BLIND = {"session_hash", "round_robin"}
sees_load = pytest.mark.parametrize(
    "policy", [made for name, made in EVERY.items() if name not in BLIND]
)

candidates = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        held_tokens=st.integers(0, 200_000),
        queued_prefill_tokens=st.floats(0, 1e9),
        active_tokens=st.floats(0, 1e9),
        recent_prefill_tokens=st.floats(0, 1e9),
        sequences=st.integers(0, 1000),
        order=st.integers(0, 1000),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.name,
)
prompts = st.builds(
    PromptShape,
    tokens=st.integers(1, 200_000),
    affinity=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**40),
)


@every_policy
@given(candidates=candidates, prompt=prompts)
def test_the_choice_is_one_of_the_candidates_and_the_same_again(
    policy: RoutingPolicy, candidates: list[Candidate], prompt: PromptShape
) -> None:
    """A policy answers with a candidate, remembers nothing, and changes nothing."""
    before = list(candidates)
    chosen = policy.choose(candidates, prompt)
    assert any(chosen is candidate for candidate in candidates)
    policy.choose(candidates[::-1], replace(prompt, affinity=1, number=prompt.number + 1))
    assert policy.choose(candidates, prompt) is chosen
    assert candidates == before


@sees_load
def test_of_equals_an_idle_worker_is_preferred(policy: RoutingPolicy) -> None:
    """A worker with a deep queue gets nothing that an idle one would do as well."""
    busy = Candidate("busy", queued_prefill_tokens=1e7, active_tokens=1e7, sequences=9, order=1)
    idle = Candidate("idle", order=2)
    for number in range(20):
        prompt = PromptShape(1000, affinity=number * 2**59, number=number)
        for pair in ((busy, idle), (idle, busy)):
            assert policy.choose(pair, prompt) is idle


@pytest.mark.parametrize("name", sorted(GO_BY_PREFIX))
def test_of_equals_the_one_that_holds_the_prompt_is_preferred(name: str) -> None:
    """What a policy by prefix is for."""
    policy = EVERY[name]
    holder = Candidate("holder", held_tokens=8192, order=9)
    others = [Candidate(f"w{n}", order=n) for n in range(3)]
    assert policy.choose([*others, holder], PromptShape(10_000)) is holder


def one_system_prompt(requests: int, *, turns: int, seed: int = 1) -> list[TraceRequest]:
    """Conversations that all begin with the same block."""
    chance = random.Random(seed)  # noqa: S311 - a trace, no secret
    trace, at_s = [], 0.0
    for number in range(requests):
        at_s += chance.expovariate(10.0)
        conversation, turn = number // turns, number % turns
        own = [(conversation + 1) * 1000 + block for block in range(4 + 2 * turn)]
        blocks = (1, *own)
        trace.append(TraceRequest(at_s, len(blocks) * 512, 100, blocks, conversation * 7919**4))
    return trace


def imbalance(policy: RoutingPolicy, trace: Sequence[TraceRequest], note_s: float = 2.0) -> float:
    fleet = Fleet(workers=4, blocks=500, prefill_tps=20_000, note_s=note_s)
    return Replay(fleet, policy, PrefixIndex()).run(trace).imbalance


@every_policy
@pytest.mark.parametrize("turns", [1, 5])
def test_a_first_block_that_all_share_does_not_draw_everything_to_one_worker(
    policy: RoutingPolicy, turns: int
) -> None:
    """Plain longest prefix has an imbalance of 4 here: one worker does all the work."""
    assert imbalance(policy, one_system_prompt(1200, turns=turns)) < 1.6


class LongestPrefix:
    """The trap itself."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        return max(candidates, key=lambda candidate: candidate.held_tokens)


def test_the_trap_is_a_trap() -> None:
    """The bound above can be missed."""
    assert imbalance(LongestPrefix(), one_system_prompt(1200, turns=5)) > 3.9


@every_policy
def test_without_hints_the_work_is_still_spread(policy: RoutingPolicy) -> None:
    """No index and no memory: nothing is known to be held anywhere."""

    class Deaf(PrefixIndex):
        def match(self, hashes: Sequence[int]) -> dict[str, int]:
            return {}

    fleet = Fleet(workers=4, blocks=500, note_s=0.0)
    figures = Replay(fleet, policy, Deaf()).run(one_system_prompt(1200, turns=1))
    assert figures.imbalance < 1.6


def test_a_conversation_stays_unless_its_worker_is_swamped() -> None:
    """The default holds to a worker with a queue, and leaves one with a far longer queue."""
    policy = make_policy(DEFAULT_POLICY)
    holder = Candidate("holder", held_tokens=8192, queued_prefill_tokens=20_000)
    idle = Candidate("idle")
    prompt = PromptShape(10_000)
    assert policy.choose([idle, holder], prompt) is holder
    swamped = replace(holder, queued_prefill_tokens=500_000)
    assert policy.choose([idle, swamped], prompt) is idle


def test_session_affinity_moves_only_the_conversations_of_a_lost_worker() -> None:
    """Rendezvous hashing: the others' conversations stay where they are."""
    policy = make_policy("session_affinity")
    workers = [Candidate(f"w{n}") for n in range(5)]
    prompts = [PromptShape(100, affinity=n * 0x9E3779B97F4A7C15 % 2**64) for n in range(500)]
    before = [policy.choose(workers, prompt) for prompt in prompts]
    after = [policy.choose(workers[:-1], prompt) for prompt in prompts]
    moved = [b for b, a in zip(before, after, strict=True) if a is not b]
    assert moved
    assert all(worker is workers[-1] for worker in moved)


def test_the_default_is_a_policy_of_the_list() -> None:
    """Settings and benchmarks name the same ones."""
    assert DEFAULT_POLICY in POLICIES
