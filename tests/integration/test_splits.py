"""One public model name, several variants behind it: shares, cache, canary, shadow, operator."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from router.settings import RouterSettings
from sidecache.client import CacheControl, Source
from sidecache.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoHealthyWorker,
    NotFound,
    SidecacheError,
)
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
OLD, NEW = {"model_name": "old"}, {"model_name": "new"}


def split(**settings: Any) -> dict[str, Any]:
    """A split of the public name ``chat`` into ``old`` and ``new``, by halves."""
    variants = settings.pop("weights", {"old": 1.0, "new": 1.0})
    return {
        "model": "chat",
        "sticky": "request",
        "variants": [{"model": model, "weight": weight} for model, weight in variants.items()],
    } | settings


@asynccontextmanager
async def split_stack(
    folder: Path, *, workers: Any = (OLD, NEW), with_cache: bool = False, **settings: Any
) -> AsyncIterator[Stack]:
    """A router with one split, before one worker of each variant."""
    async with scripted_stack(
        folder, workers=workers, with_cache=with_cache, router_={"splits": [split(**settings)]}
    ) as stack:
        yield stack


async def ask(stack: Stack, prompt: str, model: str = "chat", **options: Any) -> str:
    """The model that says it answered."""
    answer = await stack.client.complete(
        text=prompt, model=model, max_tokens=2, **{"cache": BYPASS} | options
    )
    return answer.model


async def variants(stack: Stack) -> dict[str, admin_pb2.SplitVariant]:
    """What an operator sees, by variant."""
    async with stack.connect("operator") as operator:
        (found,) = await operator.splits()
    return {variant.variant: variant for variant in found.variants}


async def eventually(is_so: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for what happens in the background, bounded."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_requests_are_shared_out_and_each_stays_where_it_was(tmp_path: Path) -> None:
    """Both variants answer, `started.model` says which, and the same request gets the same."""
    async with split_stack(tmp_path) as stack:
        first = [await ask(stack, f"{n}") for n in range(40)]
        assert min(Counter(first)[model] for model in ("old", "new")) >= 8
        assert first == [await ask(stack, f"{n}") for n in range(40)]
        found = await variants(stack)
        assert {label: v.succeeded for label, v in found.items()} == {
            label: 2 * count for label, count in Counter(first).items()
        }
        assert found["old"].error_rate.high < 0.2
        assert found["new"].first_token_s.low <= found["new"].first_token_s.value


async def test_a_tenant_stays_with_its_variant(tmp_path: Path) -> None:
    """Sticky by tenant: one tenant's prompts all get one variant."""
    async with split_stack(tmp_path, sticky="tenant") as stack:
        assert len({await ask(stack, f"{n}") for n in range(10)}) == 1


async def test_the_cache_never_mixes_variants(tmp_path: Path) -> None:
    """A stored answer is found by its variant only, also when the weights move its request."""
    async with split_stack(tmp_path, with_cache=True, weights={"old": 1, "new": 0}) as stack:
        for _ in range(2):
            answer = await stack.client.complete(text="x", model="chat", max_tokens=2)
            assert answer.model == "old"
        async with asyncio.timeout(5):
            while (
                await stack.client.complete(text="x", model="chat", max_tokens=2)
            ).source is not Source.EXACT:
                pass
        async with stack.connect("operator") as operator:
            await operator.set_split_weights("chat", {"old": 0, "new": 1})
        answer = await stack.client.complete(text="x", model="chat", max_tokens=2)
        assert (answer.source, answer.model) == (Source.ENGINE, "new")
        # By its own name the old variant finds what it said as the split's.
        answer = await stack.client.complete(text="x", model="old", max_tokens=2)
        assert (answer.source, answer.model) == (Source.EXACT, "old")


async def test_public_names_are_listed_and_can_be_the_default(tmp_path: Path) -> None:
    """Clients see the split as a model; one that names none may get it."""
    settings = {"splits": [split()], "default_model": "chat"}
    async with scripted_stack(
        tmp_path, workers=(OLD, NEW), with_cache=False, router_=settings
    ) as stack:
        models = {model.name: model for model in await stack.client.models()}
        assert models["chat"].is_default
        assert models["chat"].ready_workers == 2
        assert await ask(stack, "x", model="") in ("old", "new")
        assert await stack.client.tokenize(text="x", model="chat")


async def test_a_split_to_a_missing_model_is_told(tmp_path: Path) -> None:
    """Its requests end with NOT_FOUND that names the variant's model; others are served."""
    async with split_stack(tmp_path, workers=(OLD,)) as stack:
        outcomes: Counter[str] = Counter()
        for n in range(20):
            try:
                outcomes[await ask(stack, f"{n}")] += 1
            except ModelNotFound as error:
                outcomes[f"no {error.name}"] += 1
        assert set(outcomes) == {"old", "no new"}


async def test_a_variant_without_workers_falls_back_if_the_split_says_so(tmp_path: Path) -> None:
    """With fall_back its requests go to the others; without, they are UNAVAILABLE."""
    async with split_stack(tmp_path, fall_back=True) as stack:
        await ask(stack, "0")
        await stack.workers[1].server.drain(0)
        async with asyncio.timeout(5):
            while (await variants(stack))["new"].ready:
                await asyncio.sleep(0.01)
        assert {await ask(stack, f"{n}") for n in range(20)} == {"old"}


async def test_without_fall_back_a_variant_without_workers_is_unavailable(tmp_path: Path) -> None:
    """The others' answers are never passed off as its own."""
    async with split_stack(tmp_path) as stack:
        await stack.workers[1].server.drain(0)
        async with asyncio.timeout(5):
            while (await variants(stack))["new"].ready:
                await asyncio.sleep(0.01)
        outcomes = set()
        for n in range(20):
            try:
                outcomes.add(await ask(stack, f"{n}"))
            except NoHealthyWorker:
                outcomes.add("unavailable")
        assert outcomes == {"old", "unavailable"}


async def test_a_failing_canary_is_rolled_back_until_it_is_reset(tmp_path: Path) -> None:
    """One way: nothing but a reset gives it requests again, a changed weight neither."""
    broken = NEW | {"scripted": {"die_after_tokens": 0}}
    canary = {"variant": "new", "min_requests": 10, "window_requests": 1000}
    async with split_stack(tmp_path, workers=(OLD, broken), canary=canary) as stack:
        for n in range(200):
            with suppress(SidecacheError):
                await ask(stack, f"{n}")
            if (await variants(stack))["new"].rolled_back:
                break
        found = await variants(stack)
        assert "error rate" in found["new"].rolled_back
        assert (found["new"].share, found["old"].share) == (0, 1)
        assert found["new"].role == admin_pb2.SPLIT_ROLE_CANARY
        assert {await ask(stack, f"{n}") for n in range(30)} == {"old"}
        async with stack.connect("operator") as operator:
            with pytest.raises(InvalidRequest, match="reset the split first"):
                await operator.set_split_weights("chat", {"new": 1})
            again = await operator.reset_split("chat")
        assert {v.variant: (v.weight, v.succeeded, v.failed) for v in again.variants} == {
            "old": (1, 0, 0),
            "new": (1, 0, 0),
        }


async def test_an_equal_canary_keeps_its_share(tmp_path: Path) -> None:
    """Hundreds of requests to two equal variants end without a rollback."""
    canary = {"variant": "new", "min_requests": 10, "max_ttft_ratio": 3.0}
    async with split_stack(tmp_path, canary=canary) as stack:
        for n in range(150):
            await ask(stack, f"{n}")
        found = await variants(stack)
        assert not found["new"].rolled_back
        assert found["new"].share == 0.5


async def test_a_shadow_answers_nobody_and_stores_nothing(tmp_path: Path) -> None:
    """Copies reach the shadow's worker; callers get the variant's answer, the cache its alone."""
    shadow = {"model": "new", "share": 1.0, "max_running": 2}
    async with split_stack(tmp_path, with_cache=True, weights={"old": 1}, shadow=shadow) as stack:
        engine = stack.workers[1].engine
        for n in range(5):
            answer = await stack.client.complete(text=f"{n}", model="chat", max_tokens=2)
            assert answer.model == "old"
            await eventually(lambda: engine.load_figures().running_sequences == 0)
        async with asyncio.timeout(5):
            while not (found := await variants(stack))["shadow:new"].succeeded:
                await asyncio.sleep(0.01)
        assert found["shadow:new"].role == admin_pb2.SPLIT_ROLE_SHADOW
        assert found["old"].succeeded == 5
        # A request of the shadow's own model is answered by nothing that a copy said.
        answer = await stack.client.complete(text="0", model="new", max_tokens=2)
        assert answer.source is Source.ENGINE


async def test_a_hanging_shadow_delays_nobody(tmp_path: Path) -> None:
    """Copies that never end are bounded, and callers go on as before."""
    hanging = NEW | {"scripted": {"hang_after_tokens": 0}}
    shadow = {"model": "new", "share": 1.0, "max_running": 2}
    async with split_stack(
        tmp_path, workers=(OLD, hanging), weights={"old": 1}, shadow=shadow
    ) as stack:
        for n in range(10):
            assert await ask(stack, f"{n}") == "old"
        engine = stack.workers[1].engine
        await eventually(lambda: engine.load_figures().running_sequences == 2)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"weights": {"old": 0.0, "new": 0.0}}, "add up to 0"),
        ({"weights": {"old": -1.0}}, "greater than or equal to 0"),
        ({"weights": {"old": float("nan")}}, "finite"),
        ({"weights": {"chat": 1.0}}, "a loop"),
        ({"weights": {}}, "at least 1"),
        ({"canary": {"variant": "newer"}}, "is no variant"),
        ({"weights": {"old": 1.0}, "canary": {"variant": "old"}}, "another variant"),
        ({"shadow": {"model": "chat"}}, "a loop"),
        ({"shadow": {"model": "new", "share": 2.0}}, "less than or equal to 1"),
        ({"variants": [{"model": "old"}, {"model": "old"}]}, "named twice"),
    ],
)
def test_a_split_that_cannot_be_is_refused_at_start(settings: dict[str, Any], why: str) -> None:
    """Zero, negative and unknown weights, loops and doubles are named, and nothing starts."""
    with pytest.raises(ValueError, match=why):
        RouterSettings.model_validate({"insecure": True, "splits": [split(**settings)]})


def test_two_splits_of_one_name_are_refused() -> None:
    """Nobody could say which of the two is meant."""
    with pytest.raises(ValueError, match="named twice"):
        RouterSettings.model_validate({"insecure": True, "splits": [split(), split()]})


async def test_what_an_operator_may_not_say(tmp_path: Path) -> None:
    """Unknown splits and variants, impossible weights, and callers who are no operator."""
    async with split_stack(tmp_path) as stack, stack.connect("operator") as operator:
        with pytest.raises(NotFound, match="no split 'talk'"):
            await operator.reset_split("talk")
        for weights, why in (
            ({"newer": 1.0}, "is no variant"),
            ({"new": -1.0}, "may be 0 to"),
            ({"new": float("nan")}, "may be 0 to"),
            ({"new": 0.0, "old": 0.0}, "add up to 0"),
            ({}, "empty"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                await operator.set_split_weights("chat", weights)
        with pytest.raises(Forbidden):
            await stack.client.splits()
        with pytest.raises(Forbidden):
            await stack.client.set_split_weights("chat", {"new": 1.0})
