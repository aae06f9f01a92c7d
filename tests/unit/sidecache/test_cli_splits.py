"""`sidecache splits` for people."""

import io

import pytest
from rich.console import Console

from sidecache.cli.splits import _parse, split_table
from sidecache.errors import InvalidRequest
from sidecache.v1 import admin_pb2 as pb


def shown(split: pb.Split) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(split_table(split))
    return console.export_text()


def test_a_variant_is_shown_with_its_intervals() -> None:
    """Counts, rates with their bounds, and why a canary lost its share."""
    canary = pb.SplitVariant(
        variant="new",
        share=0.05,
        role=pb.SPLIT_ROLE_CANARY,
        succeeded=90,
        failed=10,
        error_rate=pb.Estimate(count=100, value=0.1, low=0.055, high=0.174),
        first_token_s=pb.Estimate(count=1, value=0.25),
        rolled_back="error rate",
    )
    text = shown(pb.Split(model="chat", sticky="tenant", fall_back=True, variants=[canary]))
    for word in ("chat", "falls back", "new (canary)", "5.0 %", "100", "10.00 [5.50, 17.40]"):
        assert word in text
    assert "250.0" in text
    assert "rolled back: error rate" in text


@pytest.mark.parametrize("weight", ["new", "=1", "new=", "new=much"])
def test_a_weight_that_says_nothing_is_refused(weight: str) -> None:
    """With an example of one that does."""
    with pytest.raises(InvalidRequest, match="v2=5"):
        _parse(weight)


def test_a_weight_may_have_an_equals_sign_in_its_variant() -> None:
    """The last one counts."""
    assert _parse("a=b=2.5") == ("a=b", 2.5)
