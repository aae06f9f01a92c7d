"""A client's connection: opened and closed as a whole, and one way to call over it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc

from sidecache.errors import InvalidRequest, from_rpc_error
from sidecache.failover import FailOverChannel
from sidecache.generation import raise_if_only_the_call_was_cancelled
from sidecache.transport import ClientTls, open_channel
from sidecache.v1 import admin_pb2_grpc, inference_pb2_grpc

UNARY_TIMEOUT_S = 10.0

Response = TypeVar("Response")


class _Stubs(NamedTuple):
    """The services of one open channel."""

    inference: "inference_pb2_grpc.InferenceServiceAsyncStub"
    admin: "admin_pb2_grpc.AdminServiceAsyncStub"
    health: health_pb2_grpc.HealthStub


class ClientConnection:
    """What every call of a client goes over; the arguments are those of the client.

    Attributes:
        addresses: of the routers, the first one preferred.
        address: the first one.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        api_key: str | None,
        tls: ClientTls | bool | None,
        allow_plaintext: bool,
    ) -> None:
        self.addresses = (address,) if isinstance(address, str) else tuple(address)
        if not self.addresses:
            raise InvalidRequest("empty; give at least one router's", field="address")
        self.address = self.addresses[0]
        self._metadata = _credentials(api_key)
        self._tls = tls
        self._allow_plaintext = allow_plaintext
        self._channel: grpc.aio.Channel | None = None
        self._stubs: _Stubs | None = None

    async def __aenter__(self) -> Self:
        if self._channel is not None:
            raise RuntimeError("this client is open already; open another one")
        channels = [
            open_channel(
                address,
                tls=self._tls,
                has_api_key=bool(self._metadata),
                allow_plaintext=self._allow_plaintext,
            )
            for address in self.addresses
        ]
        channel = channels[0] if len(channels) == 1 else FailOverChannel(channels)
        self._channel = channel
        self._stubs = _Stubs(
            inference_pb2_grpc.InferenceServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; whatever is still running on it is cancelled."""
        channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            await channel.close(None)

    @property
    def _open(self) -> "_Stubs":
        if self._stubs is None:
            raise RuntimeError("this client is not open: use `async with SidecacheClient(…)`")
        return self._stubs

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: object,
        timeout_s: float,
    ) -> Response:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            raise_if_only_the_call_was_cancelled()
            raise


def _credentials(api_key: str | None) -> Sequence[tuple[str, str]]:
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        raise InvalidRequest("an API key is printable ASCII without spaces around", field="api_key")
    return (("authorization", f"Bearer {api_key}"),)
