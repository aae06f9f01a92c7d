"""Connections to other routers: real channels, which say themselves whether they are closed."""

import asyncio

import grpc

from router.peers import Peers
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc
from tests.unit.sidecache.conftest import AttachContext, ScriptedService, serving
from tests.unit.sidecache.events import STARTED, delta

CLOSED = grpc.ChannelConnectivity.SHUTDOWN


class Phone:
    """Dials, and remembers whom."""

    def __init__(self) -> None:
        self.dialled: dict[str, grpc.aio.Channel] = {}

    def dial(self, address: str) -> grpc.aio.Channel:
        assert address not in self.dialled
        self.dialled[address] = grpc.aio.insecure_channel(address)
        return self.dialled[address]

    def closed(self) -> list[str]:
        return [
            address for address, channel in self.dialled.items() if channel.get_state() is CLOSED
        ]


def address(number: int) -> str:
    return f"127.0.0.1:{number}"


async def test_what_is_dropped_is_closed() -> None:
    """The longest unused one first; a dropped channel would keep its socket for good."""
    phone = Phone()
    peers = Peers(phone.dial, max_kept=2)
    for number in (1, 2, 1, 3, 4):
        async with peers.reach(address(number)) as channel:
            assert channel.get_state() is not CLOSED
    assert phone.closed() == [address(1), address(2)]
    assert len(peers) == 2
    await peers.aclose()
    assert len(phone.closed()) == 4


async def test_the_one_just_used_is_kept() -> None:
    """Whom a router follows often is not dialled anew because many others came once."""
    phone = Phone()
    peers = Peers(phone.dial, max_kept=2)
    for number in (1, 2, 1, 3, 1, 4, 1):
        async with peers.reach(address(number)):
            pass
    assert phone.closed() == [address(2), address(3)]
    await peers.aclose()


async def test_a_stream_outlives_that_its_connection_is_one_too_many() -> None:
    """It is read to its end; only then is the connection closed."""
    go_on = asyncio.Event()

    async def attach(context: AttachContext) -> None:
        await context.write(pb.AttachResponse(event=STARTED))
        await go_on.wait()
        await context.write(pb.AttachResponse(event=delta(0, 1, text="a")))

    phone, service = Phone(), ScriptedService(attach=attach)
    peers = Peers(phone.dial, max_kept=1)
    async with asyncio.timeout(10), serving(service) as busy:
        async with peers.reach(busy) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Attach(pb.AttachRequest())
            assert isinstance(await call.read(), pb.AttachResponse)
            for number in (1, 2):
                async with peers.reach(address(number)):
                    pass
            assert phone.closed() == [address(1), address(2)]
            go_on.set()
            second = await call.read()
            assert isinstance(second, pb.AttachResponse)
            assert second.event.delta.text == "a"
            assert await call.read() is grpc.aio.EOF
        assert len(peers) == 1
        async with peers.reach(address(3)):
            assert busy in phone.closed()
        await peers.aclose()
