"""The short form of benchmarks.survival: real processes, killed under their streams."""

from pathlib import Path

from benchmarks.survival import Plan, run


async def test_streams_survive_killed_workers(tmp_path: Path) -> None:
    """Under the history checker: nothing lost, repeated or reordered, whatever dies."""
    plan = Plan(streams=90, tokens=100, in_flight=30, workers=4, kill_every_s=1.0)
    figures = await run(plan, tmp_path)
    assert figures["streams"] == 90
    assert (figures["lost"], figures["repeated"], figures["reordered"]) == (0, 0, 0)
    assert (figures["wrong"], figures["interrupted"]) == (0, 0), figures["complaints"]
    assert figures["exact"] + figures["refused_before_first"] == 90
    # Of a sixth at the very least: else nothing was shown.
    assert figures["migrated"] >= 15
