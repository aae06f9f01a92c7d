"""The actions and probes that the experiments are made of; each takes the fleet first."""

import asyncio
import contextlib
import time

import grpc

from chaos.faults import Blackhole, Down
from chaos.figures import quantile
from chaos.fleet import TENANTS, Fleet, credentials
from chaos.history import Call
from chaos.traffic import kind_of
from sidecache.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc

FAULTS = {"down": Down(), "blackhole": Blackhole()}
TRACED_SERVICES = frozenset({"sidecache-router", "sidecache-cache", "sidecache-worker"})


async def observe(stage: Fleet, calls: int) -> int:
    """Let clients make so many more calls; returns the calls of this phase so far."""
    await stage.observe(calls)
    return len(stage.window)


async def failed_calls(stage: Fleet, calls: int = 0) -> int:
    """Calls of this phase that did not end OK, after so many more."""
    if calls:
        await stage.observe(calls)
    return sum(call.code != "OK" for call in stage.window)


async def wrong_streams(stage: Fleet) -> list[str]:
    """What the history checker found in the whole run; empty when every stream was right."""
    return [str(violation) for violation in stage.report().violations[:10]]


async def exact_hits(stage: Fleet, calls: int) -> int:
    """Answers from the cache among so many calls sent from now on."""
    return sum(call.source == "EXACT" for call in await stage.observe(calls))


async def added_first_token_ms(stage: Fleet, share: float = 0.5) -> float:
    """What asking the cache adds to the time to first token of a miss.

    The quantile ``share`` of fresh prompts less the median of those that bypass
    the cache, both of this phase.
    """
    asking = quantile(_ttfts(stage.window, "fresh"), share)
    return 1000 * (asking - quantile(_ttfts(stage.window, "bypass"), 0.5))


async def first_token_change_ms(stage: Fleet, share: float = 0.5) -> float:
    """Time to first token of fresh prompts now, less that before the fault."""
    now = quantile(_ttfts(stage.window, "fresh"), share)
    return 1000 * (now - quantile(_ttfts(stage.windows["before"], "fresh"), share))


async def kill(stage: Fleet, service: str) -> int:
    """SIGKILL; returns the exit code."""
    stage.struck.add(service)
    return await stage.services[service].kill()


async def exit_code(stage: Fleet, service: str) -> int | None:
    """As waitpid told; None while it runs."""
    return stage.services[service].exit_code


async def hang(stage: Fleet, service: str) -> None:
    """SIGSTOP."""
    stage.services[service].hang()


async def is_hung(stage: Fleet, service: str) -> bool:
    """Whether the kernel has stopped it."""
    return await stage.services[service].is_hung()


async def resume(stage: Fleet, service: str) -> None:
    """SIGCONT."""
    stage.services[service].resume()


async def restart(stage: Fleet, service: str) -> None:
    """Start it again at its old address."""
    await stage.restart(service)


async def serves_hits(stage: Fleet) -> bool:
    """Whether a popular prompt is answered from the cache now."""
    return (await stage.traffic.ask(TENANTS[0], "popular")).source == "EXACT"


async def unexpected_deaths(stage: Fleet) -> list[str]:
    """Services that ended though nobody struck them."""
    return stage.unexpected_deaths()


async def kill_while_generating(stage: Fleet, service: str, streams: int) -> int:
    """SIGKILL a worker the moment it holds so many streams; returns how many it held.

    The worker's time to first token is long against the time this takes, so
    those streams have had no token.
    """
    worker = stage.services[service]
    async with grpc.aio.insecure_channel(worker.address) as channel:
        facts = worker_pb2_grpc.WorkerServiceStub(channel)
        held = 0
        while held < streams:
            load = await facts.GetLoad(worker_pb2.GetLoadRequest(), timeout=2.0)
            held = load.running_sequences
    await kill(stage, service)
    return held


async def streams_struck(stage: Fleet, service: str) -> int:
    """Calls of this phase that named a worker in `started` and then lost it without a token.

    The stream went on elsewhere and says so at offset 0, or it failed.
    """
    return sum(
        call.started is not None
        and call.started.worker == service
        and (_moved_at_the_start(call) or (call.code != "OK" and call.ttft_s is None))
        for call in stage.window
    )


async def failed_otherwise(stage: Fleet, code: str) -> int:
    """Calls of this phase that failed with another status than this one."""
    return sum(call.code not in {"OK", code} for call in stage.window)


async def slowest_call_s(stage: Fleet) -> float:
    """The longest call of this phase, good or bad."""
    return max(call.ended.at_s - call.sent_s for call in stage.window if call.ended)


async def ready_workers(stage: Fleet) -> int:
    """Workers that the router would give a stream to."""
    stub = inference_pb2_grpc.InferenceServiceStub(stage.channels[0])
    listed = await stub.ListModels(
        inference_pb2.ListModelsRequest(), timeout=2.0, metadata=credentials(TENANTS[0])
    )
    return sum(model.ready_workers for model in listed.models)


async def break_collector(stage: Fleet, fault: str) -> None:
    """Take the collector away: ``down`` refuses, ``blackhole`` accepts and never answers."""
    if stage.proxy is None or stage.collector is None:
        raise ValueError("this fleet has no collector to break")
    stage.placement = stage.proxy.put_on(FAULTS[fault])
    stage.collector.forget()


async def mend_collector(stage: Fleet) -> None:
    """Bring the collector back."""
    if stage.proxy is not None and stage.placement is not None:
        stage.proxy.take_off(stage.placement)
        stage.placement = None


async def connections_struck_within(stage: Fleet, seconds: float) -> int:
    """Connections to the collector that the fault has cut or holds; waits for the first."""
    if stage.placement is None:
        return 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stage.placement.first_strike()
    return stage.placement.connections


async def spans_received(stage: Fleet) -> int:
    """Spans the collector got since it was last broken."""
    return stage.collector.spans.total() if stage.collector else 0


async def all_services_report_within(stage: Fleet, seconds: float) -> bool:
    """Whether router, cache and worker each sent spans since the collector was last broken."""
    if stage.collector is None:
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stage.collector.all_reported(TRACED_SERVICES)
    return stage.collector.spans.keys() >= TRACED_SERVICES


async def shutdown_s(stage: Fleet, service: str) -> float:
    """SIGTERM an idle service, time its exit, and start it again; NaN unless it exits with 0."""
    await stage.traffic.pause()
    stage.struck.add(service)
    began_s = time.monotonic()
    code = await stage.services[service].terminate()
    took_s = time.monotonic() - began_s
    await stage.restart(service)
    stage.traffic.resume()
    return took_s if code == 0 else float("nan")


def _ttfts(calls: list[Call], kind: str) -> list[float]:
    return [call.ttft_s for call in calls if kind_of(call) == kind and call.ttft_s is not None]


def _moved_at_the_start(call: Call) -> bool:
    return any(event.HasField("migrated") and event.migrated.offset == 0 for event in call.events())
