"""From workers and a prompt to a lease."""

from dataclasses import replace

import pytest

from router.dispatch import Dispatcher
from router.model import ServedModel
from router.prefix import PrefixHint
from router.relay import fits
from router.routing.choice import make_policy
from router.settings import RoutingSettings
from router.worker import Worker
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from tests.unit.router.fleet import MODEL, Clock, chat, make_prompt, make_worker

SETTINGS = RoutingSettings()
LONG = "Once upon a time there was a long story. " * 200


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def workers(clock: Clock) -> list[Worker]:
    return [make_worker(f"w{n}", clock=clock) for n in range(3)]


@pytest.fixture
async def dispatcher(clock: Clock) -> Dispatcher:
    return Dispatcher(make_policy("prefix"), SETTINGS, clock)


async def test_the_hint_says_who_holds_the_prompt(
    dispatcher: Dispatcher, workers: list[Worker]
) -> None:
    """Blocks held decide, and what is left to prefill is what counts as queued."""
    hint = PrefixHint(
        prompt_token_ids=range(2000),
        block_size=16,
        prompt_blocks=125,
        held={workers[2].address: 100, workers[1].address: 10},
    )
    lease = dispatcher.lease(workers, make_prompt(chat(LONG), hint=hint))
    assert lease.worker is workers[2]
    assert workers[2].load.queued == 2000 - 1600


async def test_without_hints_a_conversation_goes_where_it_went(
    dispatcher: Dispatcher, workers: list[Worker], clock: Clock
) -> None:
    """Own routes are remembered for minutes where no sidecar knows better."""
    first = dispatcher.lease(workers, make_prompt(chat(LONG)))
    first.release()
    clock.now += 60
    others = [dispatcher.lease(workers, make_prompt(chat(f"{n}{LONG}"))) for n in range(2)]
    assert first.worker not in [lease.worker for lease in others]
    for lease in others:
        lease.release()
    again = dispatcher.lease(workers, make_prompt(chat(LONG, "answer", "more?")))
    assert again.worker is first.worker
    # Only the new turns are to be prefilled.
    assert 0 < again.worker.load.queued < 100


async def test_with_hints_own_routes_count_for_seconds_only(
    dispatcher: Dispatcher, workers: list[Worker], clock: Clock
) -> None:
    """A burst stays together; later the index knows better."""
    nothing = PrefixHint(prompt_token_ids=range(2000), block_size=16, prompt_blocks=125)
    first = dispatcher.lease(workers, make_prompt(chat(LONG), hint=nothing))
    burst = dispatcher.lease(workers, make_prompt(chat(LONG), hint=nothing))
    assert burst.worker is first.worker
    first.release()
    burst.release()
    clock.now += SETTINGS.note_s + 0.1
    assert (
        dispatcher.lease(workers, make_prompt(chat(LONG), hint=nothing)).worker is not first.worker
    )


async def test_a_restarted_worker_holds_nothing(
    dispatcher: Dispatcher, workers: list[Worker]
) -> None:
    """A new epoch is another worker to everything that remembers."""
    first = dispatcher.lease(workers, make_prompt(chat(LONG)))
    first.release()
    facts = worker_pb2.GetModelResponse()
    facts.CopyFrom(MODEL)
    facts.epoch = "e2"
    first.worker.introduce(facts)
    assert dispatcher.lease(workers, make_prompt(chat(LONG))).worker is not first.worker


@pytest.mark.parametrize("blocks", [2**32 - 1, 126])
async def test_a_wrong_hint_credits_no_more_than_the_prompt(
    dispatcher: Dispatcher, workers: list[Worker], blocks: int
) -> None:
    """Nobody holds more of a prompt than there is of it."""
    hint = PrefixHint(
        prompt_token_ids=range(2000), block_size=16, prompt_blocks=125,
        held={workers[0].address: blocks, "10.0.0.9:1": 5},
    )  # fmt: skip
    lease = dispatcher.lease(workers, make_prompt(chat(LONG), hint=hint))
    assert lease.worker is workers[0]
    assert lease.worker.load.queued == 0


async def test_one_worker_is_taken_without_a_look_at_the_prompt(
    dispatcher: Dispatcher, workers: list[Worker]
) -> None:
    """Where there is no choice, hashing a prompt buys nothing."""
    prompt = make_prompt(chat(LONG))
    assert dispatcher.lease(workers[:1], prompt).worker is workers[0]
    assert "footprint" not in vars(prompt)


async def test_without_a_prompt_the_idlest_is_taken(
    dispatcher: Dispatcher, workers: list[Worker]
) -> None:
    """As audits need it, whatever the policy."""
    dispatcher.lease(workers[:1], None)
    dispatcher.lease(workers[1:2], None)
    assert dispatcher.lease(workers, None).worker is workers[2]


async def test_the_length_of_text_is_learned(dispatcher: Dispatcher, workers: list[Worker]) -> None:
    """A tokenizer of one token a byte is found out, and an absurd count is bounded."""
    model = ServedModel.from_worker(MODEL)
    prompt = make_prompt(chat(LONG))
    estimate = dispatcher.lease(workers, prompt)
    size = prompt.footprint.size
    assert estimate.worker.load.active == pytest.approx(size / 4, abs=1)
    estimate.release()
    for _ in range(100):
        dispatcher.learn(model, prompt, size)
    learned = dispatcher.lease(workers, make_prompt(chat("!" + LONG)))
    assert learned.worker.load.active == pytest.approx(size, rel=0.01)
    for _ in range(100):
        dispatcher.learn(model, prompt, 2**31)
    absurd = dispatcher.lease(workers, make_prompt(chat("?" + LONG)))
    assert absurd.worker.load.active <= 2 * size + learned.worker.load.active + 4


async def test_a_liar_does_not_keep_its_conversations_away_from_it_for_ever(
    dispatcher: Dispatcher, workers: list[Worker]
) -> None:
    """A worker that says it is swamped is believed up to a bound, and loses no long prefix."""
    lie = worker_pb2.GetLoadResponse(waiting_prompt_tokens=2**64 - 1)
    workers[0].load.hear(lie, 0, SETTINGS.max_foreign_tokens)
    hint = PrefixHint(
        prompt_token_ids=range(8000), block_size=16, prompt_blocks=500,
        held={workers[0].address: 500},
    )  # fmt: skip
    assert dispatcher.lease(workers, make_prompt(chat(LONG), hint=hint)).worker is workers[0]


HINT = PrefixHint((1, 2), "tokenizer", "template", 16, 0)


@pytest.mark.parametrize(
    ("hint", "request_", "good"),
    [
        (HINT, chat("hi"), True),
        (HINT, pb.GenerateRequest(text="hi"), True),
        (HINT, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1])), False),
        (replace(HINT, prompt_token_ids=()), chat("hi"), False),
        (replace(HINT, tokenizer_fingerprint="other"), chat("hi"), False),
        (replace(HINT, tokenizer_fingerprint=""), chat("hi"), False),
        (replace(HINT, chat_template_fingerprint="other"), chat("hi"), False),
        (replace(HINT, chat_template_fingerprint="other"), pb.GenerateRequest(text="hi"), True),
    ],
)
async def test_ids_are_sent_only_to_who_would_make_the_same(
    hint: PrefixHint, request_: pb.GenerateRequest, good: bool
) -> None:
    """Fingerprints of tokenizer and, for a chat, of the template must be the worker's."""
    assert fits(hint, make_worker("w1"), request_) is good


async def test_ids_are_not_sent_where_messages_are_to_be_kept() -> None:
    """A worker that gets ids does not see where the first messages end."""
    request = chat("hi", "there", "now")
    request.retention.leading_messages = 1
    assert not fits(HINT, make_worker("w1"), request)
