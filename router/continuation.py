"""Going on where a lost worker left off: when that is exact, and what the next one is asked."""

from typing import NamedTuple

from router.tape import Tape
from router.ticket import Ticket
from sidecache.v1 import inference_pb2 as pb


class Obstacle(NamedTuple):
    """Why a stream cannot go on elsewhere token for token, for programs and for people."""

    label: str
    text: str


def why_not_continued(ticket: Ticket) -> Obstacle | None:
    """What keeps a stream of this request from going on elsewhere, token for token.

    Only a next token that follows from the tokens before it alone is the same at
    another worker: greedy, one choice, nothing that counts or constrains tokens, on an
    engine whose numbers do not depend on what else is in its batch.
    """
    request, sampling = ticket.request, ticket.request.sampling
    if not ticket.model.exact_continuation:
        return Obstacle("engine", "this engine's tokens may differ between runs")
    if request.n > 1:
        return Obstacle("choices", "it has several choices")
    if request.HasField("guided"):
        return Obstacle("guided", "a grammar guides it")
    if sampling.temperature > 0:
        return Obstacle("sampled", "it is sampled")
    penalized = sampling.presence_penalty or sampling.frequency_penalty
    if penalized or (sampling.HasField("repetition_penalty") and sampling.repetition_penalty != 1):
        return Obstacle("penalized", "its tokens are penalized")
    return None


def may_go_on_inexactly(request: pb.GenerateRequest) -> bool:
    """Whether the caller takes a continuation that may differ, and there can be one."""
    wanted = request.on_worker_loss == pb.ON_WORKER_LOSS_BEST_EFFORT
    return wanted and request.n == 1 and not request.HasField("guided")


def continued(request: pb.GenerateRequest, tape: Tape) -> pb.GenerateRequest:
    """The request for what comes after the tokens on the tape."""
    if not tape.tokens:
        return request
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    rest.continuation.delivered_token_ids.extend(tape.delivered_ids)
    rest.continuation.delivered_text = tape.delivered_text
    return rest
