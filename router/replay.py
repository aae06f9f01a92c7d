"""A hit: a stored answer, sent as the stream it once was."""

from collections.abc import Iterator
from typing import Any

import grpc

from observability.tracing import current_trace_id
from router.cache_client import Hit
from router.stall import StallGuard
from router.ticket import Ticket
from sidecache.v1 import cache_pb2
from sidecache.v1 import inference_pb2 as pb

_SOURCES = {
    cache_pb2.TIER_EXACT: pb.SOURCE_EXACT,
    cache_pb2.TIER_SEMANTIC: pb.SOURCE_SEMANTIC,
}


async def replay(
    hit: Hit, ticket: Ticket, context: grpc.aio.ServicerContext[Any, Any], reader_stall_s: float
) -> None:
    """Send a stored answer: `started` with its provenance, its deltas, its ends.

    Raises:
        StreamInterrupted: the client took no message for ``reader_stall_s``.
    """
    started = pb.Started(
        request_id=ticket.request_id,
        source=_SOURCES.get(hit.tier, pb.SOURCE_UNSPECIFIED),
        trace_id=current_trace_id(),
        model=ticket.model.name,
        model_revision=hit.answer.model_revision,
        cache_entry_id=hit.entry_id,
        cache_age=hit.age,
    )
    with StallGuard(reader_stall_s, reader_stall_s) as guard:
        for message in _messages(started, hit.answer):
            guard.waits_for_reader()
            await context.write(message)


def _messages(started: pb.Started, answer: cache_pb2.Answer) -> Iterator[pb.GenerateResponse]:
    """The answer in as few messages as a stream of it may have.

    In the pieces it was stored in: the first of them with `started`, the last with the
    first `finished`; of most answers that is one and the same.
    """
    message = pb.GenerateResponse(started=started)
    for number, delta in enumerate(answer.deltas):
        if number:
            yield message
            message = pb.GenerateResponse()
        message.delta.CopyFrom(delta)
    for number, finished in enumerate(answer.finished):
        if number:
            yield message
            message = pb.GenerateResponse()
        message.finished.CopyFrom(finished)
    yield message
