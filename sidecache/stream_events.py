"""The events of a stream: one message may carry several, in a fixed order.

A message costs a gateway far more than what stands in it, so a sender puts
together what is ready at the same time: `started` with the first tokens, the
last tokens with `finished`. Whoever reads takes them apart again here.
"""

from collections.abc import Iterator

from sidecache.v1 import inference_pb2 as pb

# How the events of one message follow one another.
EVENT_ORDER = ("started", "migrated", "progress", "delta", "finished")


def kind_of(event: pb.GenerateResponse) -> str:
    """The name of a message's first event; empty if a newer server's is all it holds."""
    return next((kind for kind in EVENT_ORDER if event.HasField(kind)), "")  # type: ignore[arg-type]


def single_events(response: pb.GenerateResponse) -> Iterator[pb.GenerateResponse]:
    """Each event of a message in a message of its own, in their order."""
    if len(response.ListFields()) <= 1:
        yield response
        return
    for kind in EVENT_ORDER:
        if response.HasField(kind):  # type: ignore[arg-type]  # one of the literals
            yield pb.GenerateResponse(**{kind: getattr(response, kind)})
