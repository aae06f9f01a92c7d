"""The fault proxy on real sockets: transparent until told otherwise, and each fault strikes."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.faults import Bandwidth, Blackhole, Direction, Down, Fault, Latency, Reset, Slicer
from chaos.proxy import FaultProxy
from tests.unit.chaos.echo import dial, echo, echo_server

# Timers of the loop may fire a clock tick early.
TICK_S = 0.002


@pytest.fixture(params=["tcp", "unix"])
async def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FaultProxy]:
    """A proxy before an echo server, over TCP and over Unix sockets."""
    unix = request.param == "unix"
    server_at = f"unix:{tmp_path}/server" if unix else "127.0.0.1:0"
    proxy_at = f"unix:{tmp_path}/proxy" if unix else "127.0.0.1:0"
    async with echo_server(server_at) as upstream, FaultProxy.open(upstream, listen=proxy_at) as p:
        yield p


async def test_carries_every_byte_unchanged_both_ways(proxy: FaultProxy) -> None:
    """Without a fault the proxy is a wire: no byte lost, added or moved."""
    data = random.Random(1).randbytes(3_000_000)  # noqa: S311 - repeatable, not secret
    async with dial(proxy.address) as streams:
        reader, writer = streams

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        received = await reader.read(-1)
        await sending
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    assert proxy.traffic.up_bytes == proxy.traffic.down_bytes == len(data)
    assert proxy.connections == 1


async def test_many_connections_never_mix(proxy: FaultProxy) -> None:
    """Fifty connections at once each get their own bytes back, sliced or not."""

    async def one(number: int) -> bool:
        data = f"connection {number} ".encode() * 500
        async with dial(proxy.address) as streams:
            return await echo(streams, data) == data

    with proxy.during(Slicer(700, vary=True, seed=3)) as slicer:
        assert all(await asyncio.gather(*(one(n) for n in range(50))))
    assert slicer.connections == 50


async def test_latency_delays_each_way_and_counts(proxy: FaultProxy) -> None:
    """A reply under Latency(d) both ways takes at least 2 d; taken off, it does not."""
    async with dial(proxy.address) as streams:
        with proxy.during(Latency(0.06)) as latency:
            before = time.monotonic()
            assert await echo(streams, b"slow") == b"slow"
            assert time.monotonic() - before >= 0.12 - TICK_S
        assert (latency.connections, latency.chunks, latency.num_bytes) == (1, 2, 8)
        await echo(streams, b"quick")
        assert latency.chunks == 2


async def test_latency_takes_no_bandwidth(proxy: FaultProxy) -> None:
    """Ten messages sent one after another are late together, not one after another."""
    async with dial(proxy.address) as (reader, writer):
        with proxy.during(Latency(0.15), Direction.UP) as latency:
            before = time.monotonic()
            for number in range(10):
                writer.write(b"%d" % number)
                await asyncio.sleep(0.002)  # separate packets, as tokens are
            assert await reader.readexactly(10) == b"0123456789"
            assert time.monotonic() - before < 10 * 0.15
        assert latency.chunks > 1


async def test_two_latencies_add_up(proxy: FaultProxy) -> None:
    """Faults compose: two delays on one wire are the sum."""
    async with dial(proxy.address) as streams:
        with (
            proxy.during(Latency(0.05), Direction.UP),
            proxy.during(Latency(0.05), Direction.UP) as second,
        ):
            before = time.monotonic()
            await echo(streams, b"x")
            assert time.monotonic() - before >= 0.1 - TICK_S
        assert second.struck


async def test_a_fault_taken_off_lets_go_at_once(proxy: FaultProxy) -> None:
    """Ending a fault ends its effect, also for what it holds right now."""
    async with dial(proxy.address) as streams:
        placement = proxy.put_on(Latency(60))
        waiting = asyncio.create_task(echo(streams, b"held"))
        await placement.first_strike()
        proxy.take_off(placement)
        async with asyncio.timeout(5):
            assert await waiting == b"held"


async def test_blackhole_holds_everything_and_then_goes_on_without_a_gap(
    proxy: FaultProxy,
) -> None:
    """Silence while it lasts, in order and complete afterwards."""
    async with dial(proxy.address) as streams:
        await echo(streams, b"before")
        with proxy.during(Blackhole(), Direction.DOWN) as hole:
            waiting = asyncio.create_task(echo(streams, b"during"))
            await hole.first_strike()
            done, _ = await asyncio.wait((waiting,), timeout=0.05)
            assert not done
        assert await waiting == b"during"
        assert hole.num_bytes == 6


async def test_blackhole_hides_that_the_other_side_hung_up(proxy: FaultProxy) -> None:
    """A dead peer behind a blackhole is silence, not an end."""
    async with dial(proxy.address) as (reader, writer):
        with proxy.during(Blackhole(), Direction.DOWN) as hole:
            writer.write_eof()  # the echo server ends too
            reading = asyncio.create_task(reader.read(1))
            await hole.first_strike()
            assert not reading.done()
        assert await reading == b""


async def test_blackhole_that_gives_up_resets(proxy: FaultProxy) -> None:
    """With cut_after_s the connection breaks, as a firewall would do it."""
    async with dial(proxy.address) as (reader, writer):
        with proxy.during(Blackhole(cut_after_s=0.02), Direction.UP):
            writer.write(b"x")
            await _assert_broken(reader, proxy)


async def test_backpressure_passes_through(proxy: FaultProxy) -> None:
    """A blackhole does not make the proxy swallow a sender's bytes without bound."""
    async with dial(proxy.address) as (_, writer):
        with proxy.during(Blackhole(), Direction.UP) as hole:
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(bytes(64 * 1024 * 1024))
            await hole.first_strike()
            stalled = asyncio.create_task(writer.drain())
            done, _ = await asyncio.wait((stalled,), timeout=0.3)
            assert not done
            assert proxy.buffered_bytes <= 256 * 1024 + 2 * 16 * 1024
            proxy.cut_all()
            with pytest.raises(ConnectionError):
                await stalled


async def test_bandwidth_limits_the_rate(proxy: FaultProxy) -> None:
    """100 kB at 400 kB/s take about a quarter of a second; the proof counts them."""
    data = bytes(100_000)
    async with dial(proxy.address) as streams:
        with proxy.during(Bandwidth(400_000), Direction.DOWN) as thin:
            before = time.monotonic()
            assert await echo(streams, data) == data
            assert time.monotonic() - before >= 0.2
        assert thin.num_bytes > 50_000


async def test_slicer_cuts_into_pieces_of_the_size_asked_for(proxy: FaultProxy) -> None:
    """Nothing longer than max_bytes is written at once, and nothing is lost."""
    async with dial(proxy.address) as streams:
        with proxy.during(Slicer(3), Direction.UP) as slicer:
            assert await echo(streams, b"0123456789") == b"0123456789"
        assert slicer.chunks == 3  # 3 + 3 + 3, and a rest that was not cut


async def test_reset_breaks_after_the_bytes_it_lets_through(proxy: FaultProxy) -> None:
    """The first bytes arrive; then the connection is gone, for both sides."""
    async with dial(proxy.address) as streams:
        with proxy.during(Reset(after_bytes=4), Direction.UP) as reset:
            assert await echo(streams, b"1234") == b"1234"
            assert proxy.open_connections == 1
            streams[1].write(b"5")
            await _assert_broken(streams[0], proxy)
        assert (reset.connections, reset.num_bytes) == (1, 1)


async def test_reset_is_a_tcp_reset() -> None:
    """A client over TCP sees ECONNRESET, not a polite end of the stream."""
    async with (
        echo_server() as upstream,
        FaultProxy.open(upstream) as proxy,
        dial(proxy.address) as (reader, writer),
    ):
        with proxy.during(Reset()):
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)


async def test_down_refuses_and_comes_back_at_the_same_address(proxy: FaultProxy) -> None:
    """While down, open connections break and dials are refused; then the address serves again."""
    address = proxy.address
    async with dial(address) as streams:
        await echo(streams, b"x")
        with proxy.during(Down()) as down:
            assert down.connections == 1
            await _assert_broken(streams[0], proxy)
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                await dial(address).__aenter__()
    assert proxy.address == address
    async with dial(address) as streams:
        assert await echo(streams, b"back") == b"back"


async def test_down_may_spare_open_connections(proxy: FaultProxy) -> None:
    """cut_open=False only closes the door."""
    async with dial(proxy.address) as streams:
        await echo(streams, b"x")
        with proxy.during(Down(cut_open=False)):
            assert await echo(streams, b"still here") == b"still here"


async def test_a_dead_upstream_resets_the_client(tmp_path: Path) -> None:
    """The proxy does not make a dead server look alive."""
    async with FaultProxy.open(f"unix:{tmp_path}/nobody") as proxy:
        async with dial(proxy.address) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        assert (proxy.failed_dials, proxy.connections) == (1, 0)


async def test_connections_beyond_the_limit_wait_their_turn() -> None:
    """The bound on connections holds, and nobody is refused for it."""
    async with (
        echo_server() as upstream,
        FaultProxy.open(upstream, max_connections=1) as proxy,
        dial(proxy.address) as first,
    ):
        await echo(first, b"first")
        async with dial(proxy.address) as second:
            waiting = asyncio.create_task(echo(second, b"second"))
            done, _ = await asyncio.wait((waiting,), timeout=0.05)
            assert not done
            assert proxy.connections == 1
            first[1].close()
            assert await waiting == b"second"


@pytest.mark.parametrize(
    ("fault", "field"),
    [(lambda: Slicer(0), "max_bytes"), (lambda: Bandwidth(0), "bytes_per_s")],
)
def test_a_fault_that_makes_no_sense_says_so(fault: type[Fault], field: str) -> None:
    """Bad parameters name themselves when the fault is made, not when it strikes."""
    with pytest.raises(ValueError, match=field):
        fault()


async def test_what_is_drawn_is_drawn_the_same_again() -> None:
    """A seeded fault can be repeated: the same seed cuts the same pieces, another does not."""

    async def pieces(seed: int) -> int:
        async with echo_server() as upstream, FaultProxy.open(upstream) as proxy:
            slicer = proxy.put_on(Slicer(50, vary=True, seed=seed), Direction.UP)
            async with dial(proxy.address) as streams:
                await echo(streams, bytes(1000))
            return slicer.chunks

    counts = [await pieces(seed) for seed in range(6)]
    assert [await pieces(seed) for seed in range(6)] == counts
    assert len(set(counts)) > 1


async def _assert_broken(reader: asyncio.StreamReader, proxy: FaultProxy) -> None:
    """The connection ended from the proxy's side; over TCP that is a reset."""
    async with asyncio.timeout(5):
        if proxy.address.startswith("unix:"):
            assert await reader.read(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
