"""All splits of a router: what a request becomes, and what its end is counted as."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from observability import names
from observability.metrics.router import SplitMetrics
from router.dispatch import Dispatcher
from router.pool import WorkerPool
from router.routing.choice import make_policy
from router.settings import PoolSettings, RoutingSettings
from router.splits.settings import SplitSettings
from router.splits.splits import Splits
from sidecache.errors import EngineFailed, InvalidRequest, NotFound
from sidecache.v1 import inference_pb2 as pb
from tests.unit.observability.conftest import End
from tests.unit.router.fleet import Clock, make_ticket, make_worker

HALVES = [{"model": "old"}, {"model": "new"}]


def settings(**more: Any) -> SplitSettings:
    return SplitSettings.model_validate({"model": "chat", "variants": HALVES} | more)


class Router:
    """Splits before a pool without workers, and what they tell the metrics."""

    def __init__(self, *splits: SplitSettings, default_model: str = "") -> None:
        self.end, routing, clock = End.start("sidecache-router"), RoutingSettings(), Clock()
        self.pool = WorkerPool(
            [],
            PoolSettings(),
            routing,
            Dispatcher(make_policy("prefix"), routing, clock),
            lambda _address: make_worker("w").channel,
            clock,
            default_model,
        )
        metrics = SplitMetrics(self.end.telemetry.meter)
        self.splits = Splits(splits or (settings(),), self.pool, metrics, clock)

    def asked(self, text: str, tenant: str = "acme", model: str = "chat", **more: Any) -> str:
        """What a request's model becomes; it stays what it is where there is no split."""
        request = pb.GenerateRequest(text=text, model=model, **more)
        self.splits.resolve(request, tenant)
        return f"{request.model}+{request.adapter}" if request.adapter else request.model

    def ended(self, error: BaseException | None = None, variant: str = "new", **more: Any) -> None:
        """One request of the engine that took two seconds, the first until its token."""
        ticket = replace(make_ticket(pb.GenerateRequest()), split="chat", variant=variant)
        facts = {"first_token_s": 1.0, "duration_s": 2.0, "output_tokens": 11}
        self.splits.ended(ticket, error, from_engine=True, **facts | more)

    def counts(self, metric: str, *attributes: str) -> dict[Any, Any]:
        points = self.end.points(metric)
        return {tuple(point.attributes[key] for key in attributes): point.value for point in points}


def test_a_request_gets_its_variants_model() -> None:
    """And its adapter; other models stay what they are."""
    adapted = {"model": "base", "adapter": "tuned"}
    router = Router(settings(variants=[adapted]))
    assert router.asked("x") == "base+tuned"
    assert router.asked("x", model="plain") == "plain"
    with pytest.raises(InvalidRequest, match="the split 'chat' chooses it"):
        router.asked("x", adapter="mine")


def test_an_adapter_of_the_callers_goes_with_plain_variants() -> None:
    """Where the split says nothing of adapters."""
    assert Router().asked("x", adapter="mine").endswith("+mine")


def test_a_default_model_may_be_a_split() -> None:
    """For requests that name none, and for what needs a served model."""
    router = Router(default_model="chat")
    assert router.asked("x", model="") in {"old", "new"}
    assert router.splits.served_name("") == router.splits.served_name("chat") == "old"
    assert router.splits.served_name("plain") == "plain"
    assert Router(default_model="plain").asked("x", model="") == ""


def test_a_tenants_requests_are_one_variants() -> None:
    """And tenants are shared out; what they ask changes nothing."""
    router = Router(settings(sticky="tenant"))
    by_tenant = [{router.asked(f"{n}", f"t{t}") for n in range(10)} for t in range(20)]
    assert all(len(models) == 1 for models in by_tenant)
    assert set.union(*by_tenant) == {"old", "new"}


def test_a_requests_variant_is_its_questions_and_its_tenants() -> None:
    """Two tenants with one question need not share a variant, as they share no answer."""
    router = Router(settings(sticky="request"))
    assert router.asked("x") == router.asked("x")
    assert {router.asked(f"{n}") for n in range(20)} == {"old", "new"}
    assert {router.asked("x", f"t{t}") for t in range(20)} == {"old", "new"}


def test_an_end_is_counted_by_variant_and_outcome() -> None:
    """In the metrics and in the results, with the rate after the first token."""
    router = Router()
    router.ended()
    router.ended(EngineFailed("x"), output_tokens=0)
    keys = (names.SPLIT, names.VARIANT, names.SPLIT_OUTCOME)
    assert router.counts(names.SPLIT_REQUESTS, *keys) == {
        ("chat", "new", "ok"): 1,
        ("chat", "new", "error"): 1,
    }
    results = router.splits.get("chat").results["new"]
    assert (results.tokens_per_s.mean, results.first_token_s.mean) == (10.0, 1.0)


def test_an_end_of_what_is_gone_is_nobodys() -> None:
    """A reload may have taken the variant or the split away meanwhile."""
    router = Router()
    router.ended(variant="older")
    router.splits.reconfigure([])
    router.ended()
    assert not router.end.points(names.SPLIT_REQUESTS)


def test_a_rollback_is_told_once_with_its_shares() -> None:
    """Who waited in vain counts with the time that he waited."""
    canary = {"variant": "new", "min_requests": 10, "window_requests": 100}
    router = Router(settings(canary=canary))
    assert router.counts(names.SPLIT_SHARE, names.VARIANT) == {("old",): 0.5, ("new",): 0.5}
    for _ in range(60):
        router.ended(variant="old")
        left = asyncio.CancelledError()
        router.ended(left, first_token_s=None, duration_s=30.0, output_tokens=0)
    assert router.counts(names.SPLIT_ROLLBACKS, names.SPLIT, names.VARIANT) == {("chat", "new"): 1}
    assert router.counts(names.SPLIT_SHARE, names.VARIANT) == {("old",): 1.0, ("new",): 0.0}


def test_a_reload_leaves_an_unchanged_split_as_it_is() -> None:
    """Its weights and results go on; a changed one begins anew; one left out is gone."""
    router = Router(settings(), settings(model="other"))
    router.splits.get("chat").set_weights({"new": 5.0})
    router.ended()
    before = router.splits.get("chat")
    router.splits.reconfigure([settings()])
    assert router.splits.get("chat") is before
    router.splits.reconfigure([settings(sticky="request")])
    assert router.splits.get("chat").weights == {"old": 1.0, "new": 1.0}
    assert router.splits.get("chat").results["new"].judged == 0
    with pytest.raises(NotFound, match="no split 'other'; there are: chat"):
        router.splits.get("other")
