"""What a race between cache and worker teaches the next one."""

import asyncio

from google.protobuf.duration_pb2 import Duration

from observability.metrics.router import SpeculationMetrics
from router.cache_client import Hit, Miss
from router.head_start import HeadStart
from router.relay import Reader
from router.speculation import Speculation
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import quiet_telemetry
from tests.unit.router.flying import Listener

HIT = Hit(cache_pb2.TIER_EXACT, "e", Duration(), cache_pb2.Answer())


class Told(HeadStart):
    """A head start of nothing, that writes down how lookups went."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.heard: list[bool] = []

    def looked_up(self, duration_s: float, *, hit: bool) -> None:
        self.heard.append(hit)


async def speaks(reader: Reader) -> None:
    started = pb.Started(request_id="r", source=pb.SOURCE_ENGINE)
    await reader.write(pb.GenerateResponse(started=started))
    await reader.write(pb.GenerateResponse(delta=pb.Delta(token_ids=[0], text="0 ")))


async def test_a_hit_that_came_too_late_is_learned_from() -> None:
    """Else a slow sidecar would look as if it never had an answer, and all would be generated."""
    telemetry = quiet_telemetry("sidecache-router")
    told, may_answer, outcomes = Told(), asyncio.Event(), list[Hit | Miss]()
    speculation = Speculation(told, SpeculationMetrics(telemetry.meter))

    async def lookup() -> Hit | Miss:
        await may_answer.wait()
        return HIT

    reader = Listener()
    assert await speculation.race(lookup(), speaks, reader, outcomes.append) is None
    assert reader.ids == [0]
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Miss)] == ["overtaken"]
    assert not told.heard
    may_answer.set()
    async with asyncio.timeout(5):
        while not told.heard:
            await asyncio.sleep(0)
    assert told.heard == [True]
    await telemetry.aclose()


async def test_a_lookup_that_did_not_happen_teaches_nothing() -> None:
    """A sidecar that is left alone answers at once, and says nothing of how long hits take."""
    telemetry = quiet_telemetry("sidecache-router")
    told = Told()
    speculation = Speculation(told, SpeculationMetrics(telemetry.meter))

    async def lookup() -> Hit | Miss:
        return Miss("open")

    outcome = await speculation.race(lookup(), speaks, Listener(), lambda _: None)
    assert outcome == Miss("open")
    assert not told.heard
    await telemetry.aclose()


async def test_who_leaves_takes_his_lookup_along() -> None:
    """Nobody looks up for nobody."""
    telemetry = quiet_telemetry("sidecache-router")
    speculation = Speculation(Told(), SpeculationMetrics(telemetry.meter))
    ended = asyncio.Event()

    async def lookup() -> Hit | Miss:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async def waits(_reader: Reader) -> None:
        await asyncio.Event().wait()

    racing = asyncio.create_task(speculation.race(lookup(), waits, Listener(), lambda _: None))
    for _ in range(10):
        await asyncio.sleep(0)
    racing.cancel()
    await asyncio.gather(racing, return_exceptions=True)
    async with asyncio.timeout(5):
        await ended.wait()
    await telemetry.aclose()
