"""The request path through real servers: source, order, provenance, tenants."""

import asyncio
from pathlib import Path

import pytest

from inference_svc.engines.scripted import prompt_seed, scripted_text, scripted_token
from sidecache.client import CacheControl, Completion, SidecacheClient, Source
from sidecache.errors import InvalidRequest, ModelNotFound, NotCached
from sidecache.stream_events import kind_of
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import scripted_stack


async def hit(client: SidecacheClient, prompt: str, **options: object) -> Completion:
    """Ask until the answer, which is stored in the background, comes from the cache."""
    async with asyncio.timeout(10):
        while True:
            answer = await client.complete(prompt, **options)  # type: ignore[arg-type]
            if answer.source in (Source.EXACT, Source.SEMANTIC):
                return answer


async def test_a_miss_comes_from_a_worker_and_the_same_again_from_the_cache(
    tmp_path: Path,
) -> None:
    """The first answer is the engine's, the second the very same from the exact tier."""
    async with scripted_stack(tmp_path) as stack:
        first = await stack.client.complete("hello", max_tokens=40)
        assert first.source is Source.ENGINE
        assert first.worker == "w1"
        ids = await stack.client.tokenize("hello")
        seed = prompt_seed(ids)
        assert first.token_ids == [scripted_token(seed, position) for position in range(40)]
        assert first.text == "".join(scripted_text(token) for token in first.token_ids)
        assert first.usage.prompt_tokens == len(ids)
        again = await hit(stack.client, "hello", max_tokens=40)
        assert again.source is Source.EXACT
        assert (again.text, again.token_ids) == (first.text, first.token_ids)
        assert again.worker == ""
        assert again.cache_entry_id
        assert again.usage.completion_tokens == 40


async def test_cached_prompt_tokens_are_the_engines_and_never_a_replays(tmp_path: Path) -> None:
    """A generation says what its worker had cached; the stored answer says nothing of it."""
    async with scripted_stack(tmp_path) as stack:
        bypass = CacheControl(mode=pb.CACHE_MODE_BYPASS)
        prompt = "a long prompt that fills more than a block or two " * 3
        cold = await stack.client.complete(prompt, max_tokens=2, cache=bypass)
        warm = await stack.client.complete(prompt, max_tokens=2)
        replayed = await hit(stack.client, prompt, max_tokens=2)
    assert cold.usage.cached_prompt_tokens == 0
    assert cold.usage.HasField("cached_prompt_tokens")
    assert warm.usage.cached_prompt_tokens == warm.usage.prompt_tokens // 32 * 32 > 0
    assert not warm.usage.cached_prompt_tokens_estimated
    assert not replayed.usage.HasField("cached_prompt_tokens")


async def test_a_hit_is_replayed_as_a_stream(tmp_path: Path) -> None:
    """A stored answer comes in several messages with contiguous offsets."""
    async with scripted_stack(tmp_path) as stack:
        await hit(stack.client, "hello", max_tokens=600)
        async with stack.client.generate("hello", max_tokens=600) as stream:
            kinds: list[str] = []
            offsets: list[tuple[int, int]] = []
            async for event in stream:
                kinds.append(kind_of(event))
                if kinds[-1] == "delta":
                    offsets.append((event.delta.offset, len(event.delta.token_ids)))
        assert kinds[0] == "started"
        assert kinds[-1] == "finished"
        assert kinds[1:-1] == ["delta"] * len(offsets)
        assert len(offsets) >= 2
        assert offsets[0][0] == 0
        assert sum(count for _, count in offsets) == 600
        assert [a + n for a, n in offsets[:-1]] == [a for a, _ in offsets[1:]]


async def test_tenants_never_share_answers(tmp_path: Path) -> None:
    """What one tenant stored is a miss for another, and still a hit for the first."""
    async with scripted_stack(tmp_path) as stack, stack.connect("umbrella") as other:
        await hit(stack.client, "our secret", max_tokens=8)
        only = CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
        with pytest.raises(NotCached):
            await other.complete("our secret", max_tokens=8, cache=only)
        assert (await hit(stack.client, "our secret", max_tokens=8)).source is Source.EXACT


async def test_namespaces_part_a_tenants_cache(tmp_path: Path) -> None:
    """An answer of one namespace is not served in another."""
    async with scripted_stack(tmp_path) as stack:
        await hit(stack.client, "hello", max_tokens=8, cache=CacheControl(namespace="blue"))
        only = CacheControl(namespace="green", mode=pb.CACHE_MODE_ONLY_IF_CACHED)
        with pytest.raises(NotCached):
            await stack.client.complete("hello", max_tokens=8, cache=only)


@pytest.mark.parametrize(
    ("cache", "second", "third"),
    [
        (CacheControl(mode=pb.CACHE_MODE_NO_CACHE), Source.ENGINE, Source.EXACT),
        (CacheControl(mode=pb.CACHE_MODE_BYPASS), Source.ENGINE, Source.ENGINE),
        (CacheControl(no_store=True), Source.ENGINE, Source.ENGINE),
    ],
    ids=["no-cache", "bypass", "no-store"],
)
async def test_cache_modes(
    tmp_path: Path, cache: CacheControl, second: Source, third: Source
) -> None:
    """What a mode forbids is not done: looking up, storing, or both."""
    async with scripted_stack(tmp_path) as stack:
        for _ in range(2):
            answer = await stack.client.complete("hello", max_tokens=8, cache=cache)
            assert answer.source is second
        # Stores are kept in order, so once a later one is found this one was decided.
        await hit(stack.client, "marker", max_tokens=8)
        answer = await stack.client.complete("hello", max_tokens=8)
        assert answer.source is third


async def test_sampling_is_cached_only_when_it_repeats_or_is_allowed(tmp_path: Path) -> None:
    """Unseeded sampling asks the engine again; a seed or allow_sampled makes it a hit."""
    async with scripted_stack(tmp_path) as stack:
        for _ in range(2):
            free = await stack.client.complete("dice", max_tokens=8, temperature=1.0)
            assert free.source is Source.ENGINE
        assert (await hit(stack.client, "dice", max_tokens=8, temperature=1.0, seed=3)).text
        allowed = CacheControl(allow_sampled=True)
        assert (await hit(stack.client, "dice", max_tokens=8, temperature=1.0, cache=allowed)).text
        with pytest.raises(InvalidRequest, match="never cached"):
            await stack.client.complete(
                "dice", temperature=1.0, cache=CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
            )


async def test_choices_come_back_from_the_cache_apart(tmp_path: Path) -> None:
    """n answers are streamed, stored and replayed each on its own."""
    async with scripted_stack(tmp_path) as stack:
        first = await stack.client.complete("hello", n=3, max_tokens=20)
        again = await hit(stack.client, "hello", n=3, max_tokens=20)
        assert [c.token_ids for c in again.choices] == [c.token_ids for c in first.choices]
        assert len({tuple(c.token_ids) for c in first.choices}) == 3


async def test_models_are_listed_and_must_exist(tmp_path: Path) -> None:
    """Two models behind one router: both listed, each asked by name, a third refused."""
    fleet = [{"model_name": "small"}, {"model_name": "large"}]
    async with scripted_stack(tmp_path, workers=fleet) as stack:
        models = {model.name: model for model in await stack.client.models()}
        assert models.keys() == {"small", "large"}
        assert all(model.ready_workers == 1 for model in models.values())
        assert (await stack.client.complete("x", model="large", max_tokens=2)).worker == "w2"
        with pytest.raises(ModelNotFound, match="there are: large, small") as missing:
            await stack.client.complete("x", model="medium", max_tokens=2)
        assert missing.value.name == "medium"
        with pytest.raises(InvalidRequest, match="several are served: large, small"):
            await stack.client.complete("x", max_tokens=2)


async def test_the_request_id_and_the_trace_id_are_told(tmp_path: Path) -> None:
    """Engine and cache alike say which request this was; no two are the same."""
    async with scripted_stack(tmp_path) as stack:
        first = await stack.client.complete("hello", max_tokens=2)
        again = await hit(stack.client, "hello", max_tokens=2)
        assert first.request_id != again.request_id
        # Both name the router that gave them out.
        assert first.request_id.split("-")[0] == again.request_id.split("-")[0]
        assert len(first.trace_id) == len(again.trace_id) == 32
