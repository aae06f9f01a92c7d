"""What a hint was worth, as the metrics tell it."""

from typing import Any

import pytest

from observability import names
from observability.metrics.router import Promise, RoutingMetrics
from router.hint_account import account, promise
from router.prefix import PrefixHint
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2
from tests.unit.observability.conftest import End
from tests.unit.router.fleet import MODEL, make_worker


def points(end: End, metric: str, *keys: str) -> dict[Any, float]:
    """The values of a counter by the values of these attributes."""
    return {tuple(p.attributes[key] for key in keys): p.value for p in end.points(metric)}


@pytest.mark.parametrize(
    ("cached", "expected"),
    [(320, "kept"), (400, "kept"), (288, "kept"), (287, "short"), (160, "short"), (159, "broken")],
)
def test_a_promise_is_kept_within_a_block(cached: int, expected: Promise) -> None:
    """An engine that computes a prompt's last block again has kept it; under half is broken."""
    assert promise(320, 32, pb.Usage(cached_prompt_tokens=cached)) == expected


def test_an_engine_that_says_nothing_breaks_nothing() -> None:
    """Absence of a figure is no proof of a wrong hint."""
    assert promise(320, 32, pb.Usage(prompt_tokens=400)) == "untold"


async def test_blocks_are_told_by_where_they_are() -> None:
    """Here, beyond that at another worker, and nowhere; a hint without holders promises nothing."""
    end = End.start("sidecache-test")
    metrics = RoutingMetrics(end.telemetry.meter)
    here, there = make_worker("1"), make_worker("2")
    usage = pb.Usage(prompt_tokens=330, cached_prompt_tokens=96)
    held = {here.address: 3, there.address: 5}
    account(metrics, PrefixHint((), "", "", 32, 10, held), here, usage, token_ids=True)
    account(metrics, PrefixHint((), "", "", 32, 10), here, usage, token_ids=True)
    account(metrics, None, there, usage, token_ids=False)
    streams = points(end, names.ROUTING_STREAMS, names.ROUTING_HINT, names.ROUTING_TOKEN_IDS)
    assert streams == {("given", True): 2, ("none", False): 1}
    blocks = points(end, names.ROUTING_PROMPT_BLOCKS, names.ROUTING_HELD)
    assert blocks == {("here",): 3, ("elsewhere",): 2, ("nowhere",): 15}
    assert points(end, names.ROUTING_PROMISES, names.ROUTING_PROMISE) == {("kept",): 1}


async def test_a_restarted_workers_share_begins_anew() -> None:
    """What was cached before it lost its cache says nothing about it now."""
    worker = make_worker("1")
    worker.served(pb.Usage(prompt_tokens=100, cached_prompt_tokens=96))
    assert (worker.prompt_tokens, worker.cached_prompt_tokens) == (100, 96)
    again = worker_pb2.GetModelResponse()
    again.CopyFrom(MODEL)
    again.epoch = "e1"
    worker.introduce(again)
    assert worker.prompt_tokens == 100
    again.epoch = "e2"
    worker.introduce(again)
    assert (worker.prompt_tokens, worker.cached_prompt_tokens) == (0, 0)
