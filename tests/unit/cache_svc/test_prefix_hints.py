"""Hints under pressure: late, busy, given up; and never in the way of a hit."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cache_svc.followed_models import FollowedModels, ModelIdentity
from cache_svc.prefix_hints import LONG_BYTES, PrefixHints
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.prompt_tokenizer import ByteTokenizer, Fingerprints
from cache_svc.tokenizers_kept import KeptTokenizers
from observability import names
from observability.metrics.cache import PrefixMetrics
from sidecache.kv_blocks import BlockHasher
from sidecache.v1 import cache_pb2

FINGERPRINTS = Fingerprints("t", "c")
IDENTITY = ModelIdentity("m", "r1", 4, FINGERPRINTS, 1 << 17, 256, salted=False)
PATIENT_S = 20.0


class StuckTokenizer(ByteTokenizer):
    """Tokenizes nothing until it is released; knows what it was asked."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[int] = []

    def encode_text(self, text: str, salt: str = "") -> Sequence[int]:
        self.asked.append(len(text))
        assert self.released.wait(PATIENT_S)
        return super().encode_text(text, salt)


class Parts:
    """Hints of one model at one worker, and what was recorded of them."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.tokenizer = StuckTokenizer()
        self.models = FollowedModels(1 << 20, 1 << 20)
        self.models.join("w", IDENTITY)
        tokenizers = KeptTokenizers(1, 1, 0)
        tokenizers._keep(FINGERPRINTS, self.tokenizer)
        self._reader = InMemoryMetricReader()
        meter = MeterProvider([self._reader]).get_meter("test")
        metrics = PrefixMetrics(meter, lambda: 0, dict, dict, lambda: 0)
        settings = PrefixSettings(inline_bytes=64, max_waiting=2, threads=1)
        self.hints = PrefixHints(self.models, tokenizers, settings, executor, metrics)

    async def hint(self, size: int, budget_s: float = PATIENT_S) -> cache_pb2.PrefixHint | None:
        return await self.hints.hint(query(size), budget_s)

    def outcomes(self) -> Counter[str]:
        found: Counter[str] = Counter()
        data = self._reader.get_metrics_data()
        assert data is not None
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == names.PREFIX_HINTS:
                for point in metric.data.data_points:
                    assert point.attributes is not None
                    kind = str(point.attributes[names.PREFIX_OUTCOME])
                    found[kind] += int(point.value)  # type: ignore[union-attr]
        return found

    async def until_asked(self, times: int) -> None:
        while len(self.tokenizer.asked) < times:
            await asyncio.sleep(0.001)


def query(size: int) -> cache_pb2.PrefixQuery:
    return cache_pb2.PrefixQuery(text="x" * size, model="m", model_revision="r1")


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    with ThreadPoolExecutor(2) as executor:
        made = Parts(executor)
        try:
            yield made
        finally:
            made.tokenizer.released.set()


async def test_a_late_hint_is_none_and_the_next_one_comes(parts: Parts) -> None:
    """The caller waits no longer than it may; the thread is free again afterwards."""
    assert await parts.hint(100, budget_s=0.01) is None
    assert parts.outcomes() == {"late": 1}
    parts.tokenizer.released.set()
    assert await parts.hint(100) is not None
    assert parts.outcomes() == {"late": 1, "given": 1}


async def test_no_more_prompts_wait_than_may(parts: Parts) -> None:
    """Beyond it there is no hint at once, rather than a late one."""
    waiting = [asyncio.create_task(parts.hint(100)) for _ in range(2)]
    await parts.until_asked(2)
    assert await parts.hint(100) is None
    assert parts.outcomes() == {"busy": 1}
    parts.tokenizer.released.set()
    assert all([await task for task in waiting])
    assert await parts.hint(100) is not None


async def test_one_long_prompt_at_a_time(parts: Parts) -> None:
    """Long prompts cannot take every thread from the others."""
    long = asyncio.create_task(parts.hint(LONG_BYTES + 1))
    await parts.until_asked(1)
    assert await parts.hint(LONG_BYTES + 1) is None
    short = asyncio.create_task(parts.hint(100))
    await parts.until_asked(2)
    parts.tokenizer.released.set()
    assert await long is not None
    assert await short is not None
    assert parts.outcomes() == {"given": 2, "busy": 1}


async def test_a_hit_never_waits_for_a_tokenizer(parts: Parts) -> None:
    """A short prompt is tokenized after a miss only; a longer one is given up."""
    async with parts.hints.begin(query(10), None):
        await asyncio.sleep(0)
    assert not parts.tokenizer.asked
    async with parts.hints.begin(query(100), None):
        await parts.until_asked(1)
    assert not parts.tokenizer.released.is_set()


async def test_a_caller_without_time_gets_no_hint(parts: Parts) -> None:
    """A deadline that is over, or nearly, is not missed for a hint."""
    for left_s in (0.0, 0.001, -1.0):
        async with parts.hints.begin(query(100), left_s) as pending:
            assert await pending.result() is None


async def test_too_long_and_unknown(parts: Parts) -> None:
    """Said by their names; nothing is tokenized for them."""
    assert await parts.hint(2 << 20) is None
    other = cache_pb2.PrefixQuery(text="x" * 100, model="other", model_revision="r1")
    assert await parts.hints.hint(other, PATIENT_S) is None
    assert await parts.hints.hint(cache_pb2.PrefixQuery(), PATIENT_S) is None
    assert parts.outcomes() == {"too_long": 1, "unknown_model": 2}
    assert not parts.tokenizer.asked


async def test_a_prompt_longer_than_the_context_gets_no_hint(parts: Parts) -> None:
    """No worker would take it, so nothing is looked up for it."""
    parts.tokenizer.released.set()
    assert await parts.hint(IDENTITY.context_length + 1) is None
    assert await parts.hint(IDENTITY.context_length) is not None
    assert parts.outcomes() == {"too_long": 1, "given": 1}


async def test_salts_are_in_the_names_only_where_the_worker_has_them(parts: Parts) -> None:
    """A worker without salts shares its blocks between tenants, and says so."""
    parts.tokenizer.released.set()
    model = parts.models.of_worker("w")
    assert model is not None
    model.index.stored("w", BlockHasher(4).hashes([ord("x")] * 40))
    salted = query(40)
    salted.cache_salt = "acme"
    hint = await parts.hints.hint(salted, PATIENT_S)
    assert hint is not None
    assert [(each.worker, each.blocks) for each in hint.held] == [("w", 10)]
