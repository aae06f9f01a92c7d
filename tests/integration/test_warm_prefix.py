"""Warming a prefix: as RPC and as a command."""

import json
from pathlib import Path

import pytest

from sidecache.errors import Forbidden, InvalidRequest
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import scripted_stack
from tests.integration.test_cache_operator import command
from tests.integration.test_routing import heard_by

TEXT = "A long system prompt. " * 40


def wanted(workers: int, tenant: str = "acme") -> admin_pb2.WarmPrefixRequest:
    request = pb.GenerateRequest(text=TEXT, max_tokens=500, logprobs=0)
    request.retention.priority = 90
    return admin_pb2.WarmPrefixRequest(tenant=tenant, request=request, workers=workers)


async def test_a_prefix_is_prefilled_on_as_many_workers(tmp_path: Path) -> None:
    """One token each, twice, as the tenant's own, and the cache learns nothing of it."""
    async with (
        scripted_stack(tmp_path, workers=({}, {}, {})) as stack,
        stack.connect("operator") as operator,
    ):
        with (
            heard_by(stack.workers[0]) as one,
            heard_by(stack.workers[1]) as two,
            heard_by(stack.workers[2]) as three,
        ):
            response = await operator.warm_prefix(wanted(2))
            requests = [one, two, three]
        assert response.tenant == "acme"
        assert len({warmed.worker for warmed in response.workers}) == 2
        assert sorted(len(heard) for heard in requests) == [0, 2, 2]
        for warmed in response.workers:
            assert not warmed.error
            assert warmed.prompt_tokens == len(TEXT)
            assert warmed.first_token_before.ToNanoseconds() > 0
            assert warmed.first_token_after.ToNanoseconds() > 0
        assert {request.max_tokens for heard in requests for request in heard} == {1}
        assert (await operator.cache_stats()).stats.lookups == 0
        assert all(worker.leases == 0 for worker in await operator.workers())


async def test_a_prompt_of_the_prefix_goes_to_a_warm_worker(tmp_path: Path) -> None:
    """What was warmed is remembered like any route."""
    async with (
        scripted_stack(tmp_path, workers=({}, {}, {}), with_cache=False) as stack,
        stack.connect("operator") as operator,
    ):
        response = await operator.warm_prefix(wanted(1))
        warm = response.workers[0].worker
        for n in range(3):
            answer = await stack.client.complete(text=f"{TEXT}{n}", max_tokens=1)
            assert answer.worker == warm
        # Warmed again, it is the same worker.
        assert (await operator.warm_prefix(wanted(1))).workers[0].worker == warm


async def test_a_worker_that_fails_is_told_beside_those_that_do_not(tmp_path: Path) -> None:
    """Half a success is not an error of the call."""
    fleet = [{"scripted": {"die_after_tokens": 0}}, {}]
    async with (
        scripted_stack(tmp_path, workers=fleet) as stack,
        stack.connect("operator") as operator,
    ):
        response = await operator.warm_prefix(wanted(2))
        errors = {warmed.worker: bool(warmed.error) for warmed in response.workers}
        assert errors == {"w1": True, "w2": False}


async def test_what_cannot_be_warmed_is_refused(tmp_path: Path) -> None:
    """More workers than there are, none, and a tenant's ordinary key."""
    async with scripted_stack(tmp_path) as stack, stack.connect("operator") as operator:
        for workers in (0, 2):
            with pytest.raises(InvalidRequest) as refused:
                await operator.warm_prefix(wanted(workers))
            assert refused.value.field == "workers"
        with pytest.raises(InvalidRequest):
            await operator.warm_prefix(admin_pb2.WarmPrefixRequest(workers=1))
        with pytest.raises(Forbidden):
            await stack.client.warm_prefix(wanted(1))


async def test_the_command(tmp_path: Path) -> None:
    """A text, a system prompt, a chat in JSON; for people and for programs."""
    text = tmp_path / "prompt.txt"
    text.write_text(TEXT)
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}))
    odd = tmp_path / "odd.json"
    odd.write_text("[1, 2]")
    async with scripted_stack(tmp_path, workers=({}, {})) as stack:
        code, out, _ = await command(stack, "warm", str(text), "--workers", "2")
        assert code == 0
        assert "w1" in out
        assert "w2" in out
        assert "880" in out
        code, out, _ = await command(
            stack, "warm", str(text), "--system", "--priority", "80", "--keep", "60", "--json"
        )
        assert code == 0
        (warmed,) = json.loads(out)["workers"]
        assert warmed["promptTokens"] == len(f"system: {TEXT}\nassistant:")
        code, out, _ = await command(stack, "warm", str(chat), "--json")
        assert code == 0
        assert json.loads(out)["workers"][0]["promptTokens"] == len("user: hello\nassistant:")
        for bad in ([str(odd)], [str(tmp_path / "none")], [str(text), "--keep", "5"]):
            code, _, told = await command(stack, "warm", *bad)
            assert code != 0
            assert "Traceback" not in told
