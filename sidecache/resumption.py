"""Going on with a generation whose connection was lost, from the very next token.

The request has to say beforehand how long the router keeps the stream for its client
(``attach_window``); until then its engine slot stays taken.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol

import grpc

from sidecache.errors import (
    BrokenInvariant,
    Cancelled,
    InvalidRequest,
    NotFound,
    SidecacheError,
    Unavailable,
    from_rpc_error,
)
from sidecache.v1 import inference_pb2 as pb

DEFAULT_WINDOW_S: Final = 15.0
"""How long a router is asked to keep a stream, where ``resume`` is set and nothing else said."""

MAX_RESUMPTIONS: Final = 16
"""Of one stream; a connection that breaks more often is of no use."""

# Between two tries to reach the router again.
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0

Metadata = Sequence[tuple[str, str]]
AttachMethod = grpc.aio.UnaryStreamMultiCallable[pb.AttachRequest, pb.AttachResponse]


class Call(Protocol):
    """A stream of messages under way."""

    def read(self) -> Awaitable[object]:
        """The next message, or grpc's mark of the end."""
        ...

    def cancel(self) -> bool:
        """Give up."""
        ...


class AttachedCall:
    """A call of Attach that reads like one of Generate.

    Args:
        call: under way.
    """

    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.AttachResponse]"):
        self._call = call

    async def read(self) -> object:
        """The next message, or grpc's mark of the end."""
        message = await self._call.read()
        return message.event if isinstance(message, pb.AttachResponse) else message

    def cancel(self) -> bool:
        """Give up."""
        return self._call.cancel()


class Resumption:
    """Reconnects one stream.

    Args:
        method: the stub's Attach.
        metadata: credentials.
        window_s: how long the router keeps the stream; nothing is tried for longer.
        request_id: of the stream, where it is known before `started` says it.
    """

    def __init__(
        self, method: AttachMethod, metadata: Metadata, window_s: float, request_id: str = ""
    ) -> None:
        self.request_id = request_id
        self._method = method
        self._metadata = metadata
        self._window_s = window_s
        self.count = 0

    def attach(
        self, offset: int, timeout_s: float, metadata: Metadata | None = None
    ) -> AttachedCall:
        """Call Attach; what comes of it shows when it is read."""
        request = pb.AttachRequest(request_id=self.request_id, offset=offset)
        sent = self._metadata if metadata is None else metadata
        return AttachedCall(self._method(request, timeout=timeout_s, metadata=sent))

    async def resume(
        self, lost: SidecacheError, offset: int, timeout_s: float
    ) -> tuple[AttachedCall, pb.GenerateResponse]:
        """Return the stream, and its `started`, which was read from it.

        Args:
            lost: what ended the last call.
            offset: tokens received.
            timeout_s: what is left of the generation's deadline.

        Raises:
            SidecacheError: ``lost`` itself, where it is not the connection's loss or the
                stream cannot be had any more; else what the router says.
        """
        # Exactly these two: a subclass is the server's own word, and not a lost connection.
        if type(lost) not in (Unavailable, Cancelled) or not self.request_id:
            raise lost
        if self.count >= MAX_RESUMPTIONS:
            raise lost
        self.count += 1
        loop, wait_s = asyncio.get_running_loop(), _FIRST_WAIT_S
        give_up_at = loop.time() + min(self._window_s, timeout_s)
        while (left_s := give_up_at - loop.time()) > 0:
            call = self.attach(offset, timeout_s)
            try:
                started = self._started(await asyncio.wait_for(call.read(), left_s))
            except grpc.aio.AioRpcError as error:
                self._judge(from_rpc_error(error), lost)
            except TimeoutError:
                break
            except BaseException:
                call.cancel()
                raise
            else:
                return call, started
            await asyncio.sleep(min(wait_s, left_s))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise lost

    @staticmethod
    def _judge(refused: SidecacheError, lost: SidecacheError) -> None:
        """Return where another try may help."""
        if isinstance(refused, NotFound):
            # The router that had it is gone, or the window was over.
            raise lost from refused
        if type(refused) is not Unavailable:
            raise refused from lost

    def _started(self, message: object) -> pb.GenerateResponse:
        if not isinstance(message, pb.GenerateResponse):
            raise BrokenInvariant("the stream to go on with ended before it started")
        if message.started.request_id != self.request_id:
            raise BrokenInvariant("another stream than the one asked for came back")
        if len(message.ListFields()) > 1:
            raise BrokenInvariant("a stream that goes on has to start with `started` alone")
        return message


def window_of(request: pb.GenerateRequest) -> float:
    """How long the router is asked to keep the stream, in seconds; asks for the default.

    Raises:
        InvalidRequest: several choices cannot be gone on with.
    """
    if request.n > 1:
        raise InvalidRequest(f"a stream of {request.n} choices cannot be resumed", field="n")
    if not request.HasField("attach_window"):
        request.attach_window.FromMilliseconds(round(DEFAULT_WINDOW_S * 1e3))
    return request.attach_window.ToNanoseconds() / 1e9
