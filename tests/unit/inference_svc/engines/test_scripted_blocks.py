"""The blocks of one scripted request."""

from inference_svc.engine import GenerationRequest, Retention
from inference_svc.engines.paged_cache import PagedCache
from inference_svc.engines.scripted_blocks import SequenceBlocks

SIZE = 4


def serve(cache: PagedCache, *ids: int, retained: int | None = None) -> SequenceBlocks:
    """One request from its prefill to its end, without an answer."""
    retention = None if retained is None else Retention(retained, 50, None)
    request = GenerationRequest("id", ids, 1, retention=retention)
    blocks = SequenceBlocks(cache, SIZE, request, lambda _: None)
    blocks.prefilled()
    blocks.ended([])
    return blocks


def test_only_whole_blocks_of_a_retained_prefix_are_kept() -> None:
    """A block that goes on beyond the prefix is another prompt's no more than any other."""
    cache = PagedCache(4, lambda: 0.0)
    prompt = range(3 * SIZE)
    serve(cache, *prompt, retained=SIZE + 1)
    for number in range(1, 9):
        serve(cache, *range(100 * number, 100 * number + 2 * SIZE))
    assert serve(cache, *prompt).cached_tokens == SIZE
