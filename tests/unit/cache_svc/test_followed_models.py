"""One index for each kind of worker."""

from dataclasses import replace

import pytest

from cache_svc.followed_models import FollowedModels, ModelIdentity, UnusableModel
from cache_svc.prompt_tokenizer import Fingerprints
from sidecache.v1 import worker_pb2

IDENTITY = ModelIdentity("m", "r1", 4, Fingerprints("t", "c"), 64, 256, salted=True)


def test_an_index_goes_with_its_last_worker() -> None:
    """Models that come and go leave nothing behind."""
    models = FollowedModels(10, 100)
    for number in range(50):
        models.join("w", replace(IDENTITY, revision=str(number)))
    assert len(list(models)) == 1
    models.leave("w")
    models.leave("w")
    assert list(models) == []
    assert models.find("m", "49") is None


def test_a_worker_that_changes_its_model_takes_no_blocks_along() -> None:
    """They were of another checkpoint."""
    models = FollowedModels(10, 100)
    models.join("w", IDENTITY)
    before = models.of_worker("w")
    assert before is not None
    before.index.stored("w", [1, 2])
    models.join("w", IDENTITY)
    assert models.blocks == 2
    models.join("w", replace(IDENTITY, block_size=8))
    assert models.blocks == 0


def test_most_workers_decide_which_block_size_a_hint_speaks_of() -> None:
    """Counts in blocks of different sizes cannot be compared."""
    models = FollowedModels(10, 100)
    models.join("a", replace(IDENTITY, block_size=8))
    models.join("b", IDENTITY)
    models.join("c", IDENTITY)
    found = models.find("m", "r1")
    assert found is not None
    assert (found.identity.block_size, found.workers) == (4, {"b", "c"})


@pytest.mark.parametrize("wrong", [{"block_size": 0}, {"block_size": 1 << 17}, {"revision": ""}])
def test_a_model_without_blocks_is_refused(wrong: dict[str, int]) -> None:
    """Names of blocks need a size that a block can have."""
    facts = {"name": "m", "revision": "r", "block_size": 16} | wrong
    with pytest.raises(UnusableModel):
        ModelIdentity.of_worker(worker_pb2.GetModelResponse(**facts))  # type: ignore[arg-type]
