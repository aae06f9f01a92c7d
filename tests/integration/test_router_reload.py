"""New settings while the router runs: no stream is lost, and a bad file changes nothing."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.settings import RouterSettings
from sidecache.client import CacheControl, SidecacheClient
from sidecache.errors import DeadlineExceeded, InvalidRequest, Overloaded, SetupError
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack, scripted_worker

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
SLOW = {"scripted": {"tokens_per_s": 100.0}}


def changed(stack: Stack, **settings: object) -> RouterSettings:
    """The stack's settings with some of them changed."""
    same = {
        "workers": [worker.server.address for worker in stack.workers],
        "keys_file": stack.keys_file,
        "server": {"listen": "127.0.0.1:0"},
    }
    return RouterSettings.model_validate(same | settings)


def reconfigure(stack: Stack, **settings: object) -> None:
    assert stack.router.reconfigure is not None
    stack.router.reconfigure(changed(stack, **settings))


async def test_every_part_takes_its_new_settings(tmp_path: Path) -> None:
    """Limits, admission, splits, policy and default model are in force for the next request."""
    async with scripted_stack(tmp_path, workers=({"model_name": "m"},), with_cache=False) as stack:
        ask = stack.client.complete
        assert (await ask("x", max_tokens=2)).model == "m"
        reconfigure(stack, limits={"max_stop_strings": 1})
        with pytest.raises(InvalidRequest, match="stop"):
            await ask("x", max_tokens=2, stop=["a", "b"])
        reconfigure(stack, limits={"max_prompt_bytes": 8})
        with pytest.raises(InvalidRequest, match="at most 8"):
            await ask("x" * 100, max_tokens=2)
        reconfigure(
            stack,
            splits=[{"model": "chat", "variants": [{"model": "m"}]}],
            default_model="chat",
            routing={"policy": "round_robin"},
        )
        assert (await ask("x", max_tokens=2)).model == "m"
        assert [model.name for model in await stack.client.models()] == ["m", "chat"]


async def test_a_shared_generation_may_take_as_long_as_it_says_now(tmp_path: Path) -> None:
    """The bound of who began it is in force for those that begin after the reload."""
    async with scripted_stack(tmp_path, workers=(SLOW,), with_cache=False) as stack:
        reconfigure(stack, limits={"max_request_s": 0.2})
        with pytest.raises(DeadlineExceeded):
            await stack.client.complete("x", max_tokens=100)


async def test_a_stream_outlives_a_reload(tmp_path: Path) -> None:
    """Everything that can change changes in its middle, its worker's target too; it goes on."""
    async with (
        scripted_stack(tmp_path, workers=(SLOW,), with_cache=False) as stack,
        scripted_worker("w2") as other,
    ):
        async with stack.client.generate("x", max_tokens=40) as stream:
            await anext(aiter(stream))
            reconfigure(
                stack,
                workers=[other.server.address],
                admission={"max_streams": 1},
                limits={"max_request_s": 1.0},
                routing={"policy": "least_loaded"},
            )
            with pytest.raises(Overloaded):
                await stack.client.complete("y", max_tokens=1, cache=BYPASS)
            answer = await stream.complete()
        assert answer.worker == "w1"
        assert stream.num_tokens == 40
        async with asyncio.timeout(5):
            while (await stack.client.complete("y", max_tokens=1, cache=BYPASS)).worker != "w2":
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"server": {"listen": "127.0.0.1:7"}}, "server.listen"),
        ({"cache": "unix:/run/other.sock"}, "cache"),
        ({"routing": {"salt_secret": "s"}}, "routing.salt_secret"),
        ({"telemetry": {"log_level": "DEBUG"}}, "telemetry.log_level"),
        ({"retries": {"share": 0.5}}, "retries.share"),
        ({"quarantine": {"refuse_s": 1.0}}, "quarantine.refuse_s"),
        ({"outliers": {"open_s": 9.0}}, "outliers.open_s"),
        ({"scale": {"drain_s": 9.0}}, "scale.drain_s"),
    ],
)
async def test_what_cannot_change_is_named_and_nothing_changes(
    tmp_path: Path, settings: dict[str, object], name: str
) -> None:
    """A reload is whole or not at all."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        with pytest.raises(SetupError, match=f"only a restart can change {name}$"):
            reconfigure(stack, limits={"max_prompt_bytes": 1}, **settings)
        with pytest.raises(SetupError, match="worker target"):
            reconfigure(stack, limits={"max_prompt_bytes": 1}, workers=["nonsense"])
        assert (await stack.client.complete("x" * 50, max_tokens=2)).text


async def test_a_reload_is_no_reset_of_a_rollback(tmp_path: Path) -> None:
    """A split whose settings changed keeps its rolled back canary without requests."""
    fleet = ({"model_name": "old"}, {"model_name": "new", "scripted": {"die_after_tokens": 0}})
    split = {
        "model": "chat",
        "sticky": "request",
        "variants": [{"model": "old"}, {"model": "new"}],
        "canary": {"variant": "new", "min_requests": 10},
    }
    async with scripted_stack(
        tmp_path, workers=fleet, with_cache=False, router_={"splits": [split]}
    ) as stack:
        async with stack.connect("operator") as operator:
            for n in range(200):
                await asyncio.gather(
                    stack.client.complete(text=f"{n}", model="chat", max_tokens=1),
                    return_exceptions=True,
                )
                (found,) = await operator.splits()
                if found.variants[1].rolled_back:
                    break
            reconfigure(stack, splits=[split | {"sticky": "tenant"}])
            (found,) = await operator.splits()
        assert found.sticky == "tenant"
        assert found.variants[1].rolled_back
        assert found.variants[1].share == 0


@asynccontextmanager
async def router_process(folder: Path, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--config", str(config)),
        *("--server.ready_file", str(folder / "ready"), "--insecure"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def seen(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait for a log line."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, f"the log ended without {text!r}"


async def test_a_process_reads_its_file_again(tmp_path: Path) -> None:
    """By itself when the file changes, at once at SIGHUP; a bad file is told and ignored."""
    async with scripted_worker() as worker:
        config = tmp_path / "router.toml"
        base = f'workers = ["{worker.server.address}"]\n'
        config.write_text(base)
        async with router_process(tmp_path, config) as process:
            await seen(process, "serving on")
            address = (tmp_path / "ready").read_text().strip()
            async with SidecacheClient(address) as client:
                config.write_text(base + "[limits]\nmax_prompt_bytes = 8\n")
                await seen(process, "the settings were read again")
                with pytest.raises(InvalidRequest, match="at most 8"):
                    await client.complete("x" * 100, max_tokens=1)
                config.write_text(base + "[limits]\nmax_prompt_bytes = -1\n")
                process.send_signal(signal.SIGHUP)
                await seen(process, "the old settings stay")
                config.write_text('[server]\nlisten = "127.0.0.1:1"\n')
                process.send_signal(signal.SIGHUP)
                await seen(process, "only a restart can change server.listen")
                with pytest.raises(InvalidRequest, match="at most 8"):
                    await client.complete("x" * 100, max_tokens=1)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
