"""Clients that stop reading, with real processes."""

from pathlib import Path

from benchmarks.stalled_readers import Plan, run

PLAN = Plan(stalled=4, neighbours=2, stall_s=0.5, phase_s=3.0, max_tokens=400_000)


async def test_readers_that_stall_are_cut_and_fill_no_memory(tmp_path: Path) -> None:
    """Slots are free soon after the stall time, and neither service keeps the answers."""
    figures = await run(PLAN, tmp_path)
    # The buffers on the way fill first; busy cores take their time.
    assert figures["freed_after_s"] < PLAN.stall_s + 8.0
    for service in ("router", "worker"):
        assert figures[f"{service}_mb_peak"] < figures[f"{service}_mb_before"] + 40
