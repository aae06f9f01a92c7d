"""A call goes to the next router before its first event, and never after."""

from collections.abc import Sequence
from typing import Any, Self

import grpc
import pytest

from sidecache.client import SidecacheClient
from sidecache.errors import InvalidRequest
from sidecache.failover import FailOverChannel

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED


def failed(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


class Call:
    """What a router answers: messages, then an error or the end."""

    def __init__(self, script: Sequence[Any]) -> None:
        self._script = list(script)
        self.is_cancelled = False

    async def read(self) -> Any:
        said = self._script.pop(0)
        if isinstance(said, BaseException):
            raise said
        return said

    def cancel(self) -> bool:
        self.is_cancelled = True
        return True


class Router(grpc.aio.Channel):
    """A channel to a router whose calls follow a script."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.asked: list[float] = []

    def _start(self, _request: Any, *, metadata: Any, **options: float) -> Call:
        del metadata
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
        pass

    async def channel_ready(self) -> None:
        pass

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        pass


async def read_all(channel: grpc.aio.Channel) -> list[Any]:
    generate: Any = channel.unary_stream("/Generate")
    call, messages = generate("request", timeout=5.0, metadata=()), []
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
    assert await list_models("request", timeout=5.0, metadata=()) == "models"
    assert await read_all(channel) == ["models"]
    assert len(one.asked) == 1


def test_a_client_of_nobody_is_refused() -> None:
    """At once, by name."""
    with pytest.raises(InvalidRequest, match="address"):
        SidecacheClient([])
