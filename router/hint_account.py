"""What a hint promised, and what the engine found: told to the metrics when a stream has ended."""

from observability.metrics.router import Promise, RoutingMetrics
from router.prefix import PrefixHint
from router.worker import Worker
from sidecache.v1 import inference_pb2 as pb

# Less than this share of what was promised was cached: the hint was wrong.
_BROKEN_BELOW = 0.5


def account(
    metrics: RoutingMetrics,
    hint: PrefixHint | None,
    worker: Worker,
    usage: pb.Usage,
    *,
    token_ids: bool,
) -> None:
    """Record one stream that ended well.

    Args:
        metrics: get it.
        hint: what the sidecar said of its prompt.
        worker: who answered.
        usage: as the worker tells it.
        token_ids: whether the hint's ids were sent on.
    """
    worker.served(usage)
    metrics.routed(hinted=hint is not None, token_ids=token_ids)
    if hint is None:
        return
    here = hint.held.get(worker.address, 0)
    most = max(hint.held.values(), default=0)
    metrics.placed(here, most - here, hint.prompt_blocks - most)
    if here:
        metrics.promised(promise(here * hint.block_size, hint.block_size, usage))


def promise(promised_tokens: int, block_size: int, usage: pb.Usage) -> Promise:
    """What became of a promise.

    An engine that holds a whole prompt computes its last token again, or its last
    block: a block less is a promise kept.
    """
    if not usage.HasField("cached_prompt_tokens"):
        return "untold"
    cached = usage.cached_prompt_tokens
    if cached + block_size >= promised_tokens:
        return "kept"
    return "broken" if cached < _BROKEN_BELOW * promised_tokens else "short"
