"""Pinned prefixes: who may ask a worker to keep what it computed, how firmly and how long.

KV caches are shared by all tenants, and what one of them pins takes the others' room. So
the right comes with the key, and its time is bounded.
"""

from sidecache.errors import Forbidden, InvalidRequest
from sidecache.v1 import inference_pb2 as pb

MAX_RETENTION = 100


def check_retention(request: pb.GenerateRequest) -> None:
    """Refuse a wish that cannot be.

    Raises:
        InvalidRequest: with ``field`` set to the path of what is wrong.
    """
    retention, messages = request.retention, len(request.chat.messages)
    if not 1 <= retention.priority <= MAX_RETENTION:
        raise InvalidRequest(
            f"{retention.priority}; may be 1 to {MAX_RETENTION}", field="retention.priority"
        )
    if retention.leading_messages > messages:
        raise InvalidRequest(
            f"{retention.leading_messages}; the chat has {messages} messages",
            field="retention.leading_messages",
        )
    if retention.HasField("duration") and retention.duration.ToNanoseconds() <= 0:
        raise InvalidRequest(
            f"{retention.duration.ToNanoseconds() / 1e9:g} s; must be above 0",
            field="retention.duration",
        )


def bound_retention(request: pb.GenerateRequest, max_retention: int, max_s: float) -> None:
    """Hold a caller's wish to what its key allows, and shorten it to what anybody may have.

    Args:
        request: its ``retention`` is set; without a duration it gets the longest.
        max_retention: the highest priority that the key may ask for; 0: it may not pin.
        max_s: longest time that a prefix is kept for one request.

    Raises:
        InvalidRequest: what :func:`check_retention` refuses.
        Forbidden: above what this key may ask for.
    """
    check_retention(request)
    retention = request.retention
    if retention.priority > max_retention:
        allowed = f"{max_retention} at most" if max_retention else "none"
        raise Forbidden(f"retention: {retention.priority}; this key may ask for {allowed}")
    longest_ns = round(max_s * 1e9)
    if not retention.HasField("duration") or retention.duration.ToNanoseconds() > longest_ns:
        retention.duration.FromNanoseconds(longest_ns)
