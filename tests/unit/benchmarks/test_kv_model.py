"""What is told of a model of the KV cache beside measured times."""

import pytest

from benchmarks.kv_model import classes


def test_a_time_belongs_to_the_nearer_class_by_ratio() -> None:
    """Of five, the warm prediction that took as long as a cold prompt is wrong."""
    told = classes([4.0, 5.0], [0.1, 0.2, 4.5])
    assert told == {"ttft_class_agrees": 0.8, "cold_ttft_p50_s": 4.5, "warm_ttft_p50_s": 0.2}


@pytest.mark.parametrize(("cold_s", "warm_s"), [([], [1.0]), ([1.0], []), ([], [])])
def test_without_one_of_the_classes_nothing_is_told(
    cold_s: list[float], warm_s: list[float]
) -> None:
    """A short run may have none; its other figures stand."""
    assert classes(cold_s, warm_s) == {}
