"""A sidecar's hint, as far as it can be true."""

from collections.abc import Mapping

import pytest

from router.prefix import PrefixHint
from sidecache.v1 import cache_pb2, inference_pb2
from tests.unit.router.test_tape import MODEL

SIZE = 4


def answer(
    ids: list[int] | None = None, blocks: int = 2, held: Mapping[str, int] | None = None
) -> cache_pb2.PrefixHint:
    return cache_pb2.PrefixHint(
        prompt_token_ids=inference_pb2.TokenIds(ids=ids or []),
        tokenizer_fingerprint="t",
        chat_template_fingerprint="c",
        block_size=SIZE,
        prompt_blocks=blocks,
        held=[cache_pb2.HeldPrefix(worker=w, blocks=n) for w, n in (held or {}).items()],
    )


def test_a_good_hint_is_taken_whole() -> None:
    """Ids, fingerprints, sizes and holders."""
    ids = [*range(2 * SIZE + 1)]
    hint = PrefixHint.from_sidecar(answer(ids, 2, {"a": 2, "b": 1}), MODEL)
    assert hint is not None
    assert list(hint.prompt_token_ids) == ids
    assert (hint.tokenizer_fingerprint, hint.chat_template_fingerprint) == ("t", "c")
    assert (hint.block_size, hint.prompt_blocks, hint.held) == (SIZE, 2, {"a": 2, "b": 1})


def test_nobody_holds_more_than_there_is() -> None:
    """Absurd counts are cut; those that hold nothing are left out."""
    hint = PrefixHint.from_sidecar(answer(blocks=2, held={"a": 1 << 31, "b": 0}), MODEL)
    assert hint is not None
    assert hint.held == {"a": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        answer([MODEL.vocabulary_size] * SIZE, 1),
        answer([1] * SIZE, 2),
        answer([1] * 3 * SIZE, 2),
        answer([1] * (MODEL.context_length + 1), MODEL.context_length // SIZE),
        answer(blocks=MODEL.context_length // SIZE + 1),
        cache_pb2.PrefixHint(prompt_blocks=1),
    ],
    ids=["vocabulary", "too few ids", "too many ids", "context", "blocks", "no size"],
)
def test_what_cannot_be_true_is_no_hint(wrong: cache_pb2.PrefixHint) -> None:
    """A worker is never sent ids that it does not have, or more than it can take."""
    assert PrefixHint.from_sidecar(wrong, MODEL) is None
