"""Several routers behind one client: a call goes on at the next before its first event.

A router that drains answers UNAVAILABLE, and one that is gone does so too; a call that
crosses gRPC's goodbye may be told CANCELLED, though nobody cancelled it. Nothing was
delivered then, so the next router may begin. After the first event a call stays.

A stream that lost its connection is at one of them only, which need not be the one that
answered last: Attach looks for it at all.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import grpc

_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_MAY_GO_ON = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Route:
    """Which of several routers is used first: the one that answered last.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._first = 0

    def order(self) -> list[int]:
        """Every router once, the preferred one first."""
        return [(self._first + step) % self._count for step in range(self._count)]

    def answered(self, index: int) -> None:
        """Prefer this one from now on."""
        self._first = index


class FailOverChannel(grpc.aio.Channel):
    """Channels to several routers as one channel.

    Calls that stream requests go to the first; the contract has none.

    Args:
        channels: one a router, in the order of preference; closed with this one.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._route = Route(len(channels))

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        methods = [channel.unary_unary(method, *args, **kwargs) for channel in self._channels]
        return _FailOverUnary(methods, self._route)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        methods = [channel.unary_stream(method, *args, **kwargs) for channel in self._channels]
        return _FailOverStream(methods, self._route, is_search=method.endswith("/Attach"))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channels[0].stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channels[0].stream_stream(*args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        for channel in self._channels:
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channels[0].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channels[0].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channels[0].channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()


class _FailOverUnary:
    def __init__(self, methods: Sequence[Any], route: Route) -> None:
        self._methods = methods
        self._route = route

    async def __call__(self, request: Any, *, timeout: float, metadata: Any) -> Any:  # noqa: ASYNC109 - gRPC's name
        deadline = asyncio.get_running_loop().time() + timeout
        order = self._route.order()
        for index in order:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                answer = await self._methods[index](request, timeout=left_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if index == order[-1] or error.code() not in _MAY_GO_ON:
                    raise
            else:
                self._route.answered(index)
                return answer
        raise AssertionError  # pragma: no cover - the last one returns or raises


class _FailOverStream:
    def __init__(self, methods: Sequence[Any], route: Route, *, is_search: bool) -> None:
        self._methods = methods
        self._route = route
        self._is_search = is_search

    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> "FailOverCall":
        methods, route = self._methods, self._route
        return FailOverCall(methods, route, request, timeout, metadata, is_search=self._is_search)


class FailOverCall:
    """One stream, as a caller reads it, at whichever router takes it.

    Args:
        is_search: one router has what is asked for; NOT_FOUND at another says nothing.
    """

    def __init__(
        self,
        methods: Sequence[Any],
        route: Route,
        request: Any,
        timeout_s: float,
        metadata: Any,
        *,
        is_search: bool = False,
    ) -> None:
        self._methods = methods
        self._route = route
        self._request = request
        self._metadata = metadata
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._left = route.order()
        self._has_begun = False
        self._is_search = is_search
        self._away: grpc.aio.AioRpcError | None = None
        self._start()

    async def read(self) -> Any:
        """The next message, or EOF.

        Raises:
            grpc.aio.AioRpcError: how the call ended, at the last router that was asked. Of
                a search: NOT_FOUND if all have said so; else one may have it that is away.
        """
        while True:
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                if self._has_begun or not self._may_go_on(error):
                    raise
                if not self._left:
                    raise self._away or error from None
                self._start()
                continue
            self._has_begun = True
            self._route.answered(self._index)
            return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    def cancel(self) -> bool:
        """Give up; nothing is asked elsewhere."""
        self._left.clear()
        return bool(self._call.cancel())

    def _may_go_on(self, error: grpc.aio.AioRpcError) -> bool:
        if self._is_search and error.code() is _NOT_FOUND:
            return True
        if error.code() not in _MAY_GO_ON:
            return False
        if self._is_search:
            self._away = error
        return True

    def _start(self) -> None:
        self._index = self._left.pop(0)
        left_s = max(0.0, self._deadline - asyncio.get_running_loop().time())
        self._call = self._methods[self._index](
            self._request, timeout=left_s, metadata=self._metadata
        )
