"""A call goes to the next router before its first event, and never after."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import grpc
import pytest

from sidecache.client import SidecacheClient
from sidecache.errors import InvalidRequest
from sidecache.failover import FailOverChannel

KEY = (("authorization", "Bearer k"),)
UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def failed(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


class Call:
    """What a router answers: messages, then an error or the end; a number is seconds to wait."""

    def __init__(self, script: Sequence[Any]) -> None:
        self._script = list(script)
        self.is_cancelled = False

    async def read(self) -> Any:
        said = self._script.pop(0)
        if isinstance(said, float):
            await asyncio.sleep(said)
            said = self._script.pop(0)
        if isinstance(said, BaseException):
            raise said
        return said

    def cancel(self) -> bool:
        self.is_cancelled = True
        return True


class Router(grpc.aio.Channel):
    """A channel to a router whose calls follow a script; ``asked`` has their timeouts."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.asked: list[float] = []
        self.metadata: list[Any] = []
        self.is_closed = False

    def _start(self, _request: Any, *, metadata: Any, **options: float) -> Call:
        self.metadata.append(metadata)
        self.asked.append(options["timeout"])
        return Call(self.script)

    def unary_stream(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._start

    def unary_unary(self, *_args: Any, **_kwargs: Any) -> Any:
        return lambda *args, **kwargs: self._start(*args, **kwargs).read()

    def stream_unary(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    stream_stream = stream_unary
    get_state = stream_unary

    async def close(self, grace: float | None = None) -> None:
        self.is_closed = True

    async def channel_ready(self) -> None:
        pass

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        pass


async def read_all(channel: grpc.aio.Channel, method: str = "/Generate") -> list[Any]:
    generate: Any = channel.unary_stream(method)
    call, messages = generate("request", timeout=5.0, metadata=KEY), []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


@pytest.mark.parametrize("code", [UNAVAILABLE, CANCELLED])
async def test_the_next_router_begins(code: grpc.StatusCode) -> None:
    """Refused or cut off before anything came: the second answers, and is asked first then."""
    one, two = Router(failed(code)), Router("a", "b", grpc.aio.EOF)
    channel = FailOverChannel([one, two])
    assert await read_all(channel) == ["a", "b"]
    assert await read_all(channel) == ["a", "b"]
    assert (len(one.asked), len(two.asked)) == (1, 2)
    assert two.asked[0] <= 5.0


async def test_nothing_begins_again_after_an_event() -> None:
    """What was delivered must not come twice."""
    one, two = Router("a", failed(UNAVAILABLE)), Router("a", grpc.aio.EOF)
    with pytest.raises(grpc.aio.AioRpcError):
        await read_all(FailOverChannel([one, two]))
    assert not two.asked


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
async def test_what_another_router_cannot_mend_is_told(code: grpc.StatusCode) -> None:
    """A bad request, and a fleet that is full, are the same at every router."""
    one, two = Router(failed(code)), Router("a", grpc.aio.EOF)
    with pytest.raises(grpc.aio.AioRpcError):
        await read_all(FailOverChannel([one, two]))
    assert not two.asked


async def test_the_last_error_is_told_when_all_have_refused() -> None:
    """Each router is asked once a call."""
    routers = [Router(failed(UNAVAILABLE)) for _ in range(3)]
    with pytest.raises(grpc.aio.AioRpcError):
        await read_all(FailOverChannel(routers))
    assert [len(router.asked) for router in routers] == [1, 1, 1]


async def test_unary_calls_go_on_too() -> None:
    """And who answered is preferred by every method."""
    one, two = Router(failed(UNAVAILABLE)), Router("models", grpc.aio.EOF)
    channel = FailOverChannel([one, two])
    list_models: Any = channel.unary_unary("/ListModels")
    assert await list_models("request", timeout=5.0, metadata=KEY) == "models"
    assert await read_all(channel) == ["models"]
    assert len(one.asked) == 1


async def test_a_lost_stream_is_looked_for_at_every_router() -> None:
    """Only one of them has it, and not always the one that answered last."""
    one, two = Router(failed(NOT_FOUND)), Router("rest", grpc.aio.EOF)
    assert await read_all(FailOverChannel([one, two]), "/Attach") == ["rest"]
    nobody = [Router(failed(NOT_FOUND)), Router(failed(NOT_FOUND))]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read_all(FailOverChannel(nobody), "/Attach")
    assert refused.value.code() is NOT_FOUND


@pytest.mark.parametrize("codes", [(UNAVAILABLE, NOT_FOUND), (NOT_FOUND, UNAVAILABLE)])
async def test_a_stream_may_be_where_nobody_answers(codes: Sequence[grpc.StatusCode]) -> None:
    """What the others have not may be at the router that is away: another try may find it."""
    routers = [Router(failed(code)) for code in codes]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read_all(FailOverChannel(routers), "/Attach")
    assert refused.value.code() is UNAVAILABLE


async def test_every_router_gets_the_callers_key() -> None:
    """The second one would refuse him else."""
    one, two = Router(failed(UNAVAILABLE)), Router("a", grpc.aio.EOF)
    await read_all(FailOverChannel([one, two]))
    list_models: Any = FailOverChannel([one, two]).unary_unary("/ListModels")
    await list_models("request", timeout=5.0, metadata=KEY)
    assert one.metadata == two.metadata == [KEY, KEY]


async def test_the_next_router_has_what_is_left_of_the_deadline() -> None:
    """All of them together take no longer than one may."""
    one, two = Router(0.05, failed(UNAVAILABLE)), Router("a", grpc.aio.EOF)
    await read_all(FailOverChannel([one, two]))
    list_models: Any = FailOverChannel([one, two]).unary_unary("/ListModels")
    await list_models("request", timeout=5.0, metadata=KEY)
    assert len(two.asked) == 2
    assert max(two.asked) < 4.96


async def test_who_has_left_is_served_by_nobody_else() -> None:
    """A cancelled call ends CANCELLED, which is no router's goodbye then."""
    one, two = Router(failed(CANCELLED)), Router("a", grpc.aio.EOF)
    generate: Any = FailOverChannel([one, two]).unary_stream("/Generate")
    call = generate("request", timeout=5.0, metadata=KEY)
    call.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert not two.asked


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_unary_refusal_is_told_too(code: grpc.StatusCode) -> None:
    """Another router would say the same."""
    one, two = Router(failed(code)), Router("models", grpc.aio.EOF)
    list_models: Any = FailOverChannel([one, two]).unary_unary("/ListModels")
    with pytest.raises(grpc.aio.AioRpcError):
        await list_models("request", timeout=5.0, metadata=KEY)
    assert not two.asked


async def test_every_connection_is_closed() -> None:
    """With the channel that they are behind."""
    routers = [Router(), Router()]
    async with FailOverChannel(routers):
        pass
    assert all(router.is_closed for router in routers)


def test_a_client_of_nobody_is_refused() -> None:
    """At once, by name."""
    with pytest.raises(InvalidRequest, match="address"):
        SidecacheClient([])
