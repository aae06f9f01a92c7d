"""Readers of a stream that is not, or not from its beginning, their own call's."""

from typing import Any

from observability.tracing import current_trace_id
from router.relay import Reader
from router.ticket import Ticket
from sidecache.errors import StreamInterrupted
from sidecache.v1 import inference_pb2 as pb


class Reattached:
    """A call of Attach as a reader.

    Args:
        context: of the call.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    async def write(self, message: pb.GenerateResponse) -> None:
        await self._context.write(pb.AttachResponse(event=message))


class Resumed:
    """A reader who has been told already how the stream started.

    Args:
        reader: gets the rest.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def write(self, message: pb.GenerateResponse) -> None:
        if message.HasField("started"):
            # Others read the message too.
            rest = pb.GenerateResponse()
            rest.CopyFrom(message)
            rest.ClearField("started")
            if not rest.ListFields():
                return
            message = rest
        await self._reader.write(message)


class Joined:
    """A reader who is told his own request's id, and that the stream is another's.

    Args:
        ticket: of his request.
        reader: gets it.
    """

    def __init__(self, ticket: Ticket, reader: Reader) -> None:
        self._ticket = ticket
        self._reader = reader

    async def write(self, message: pb.GenerateResponse) -> None:
        if message.HasField("started"):
            message = self._renamed(message)
        if message.HasField("migrated") and message.migrated.best_effort:
            self._check_wanted()
        await self._reader.write(message)

    def _renamed(self, message: pb.GenerateResponse) -> pb.GenerateResponse:
        own = pb.GenerateResponse()
        own.CopyFrom(message)
        own.started.request_id = self._ticket.request_id
        own.started.source = pb.SOURCE_COALESCED
        own.started.trace_id = current_trace_id()
        return own

    def _check_wanted(self) -> None:
        """Who began the stream may take what this reader does not.

        Raises:
            StreamInterrupted: this reader asked for the exact answer or none.
        """
        if self._ticket.request.on_worker_loss != pb.ON_WORKER_LOSS_BEST_EFFORT:
            raise StreamInterrupted(
                "the worker was lost, and the rest of this shared stream may differ"
                " from what it would have said"
            )
