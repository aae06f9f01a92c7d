"""`sidecache pull`: model weights, pinned or from a hub."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sidecache import weights
from sidecache.catalogue import CATALOGUE
from sidecache.cli.console import err, out
from sidecache.hub import HUB_PREFIX, pull_from_hub

_STEP = 10  # percent between two plain lines

Name = Annotated[
    str,
    typer.Argument(
        help=f"One of {', '.join(CATALOGUE)}; or {HUB_PREFIX}ORG/NAME[@REVISION] from the Hugging "
        "Face hub (needs the extra \\[hub])."
    ),
]


def pull(name: Name) -> None:
    """Fetch model weights, check them, and print where they are."""
    if name.startswith(HUB_PREFIX):
        out.print(str(pull_from_hub(name)))
    else:
        out.print(str(pull_with_progress(name)))


def pull_with_progress(name: str) -> Path:
    """Pull pinned weights, with a bar on a terminal and plain lines elsewhere.

    Silent when they are here already.
    """
    if sys.stderr.isatty():
        return _pull_with_bar(name)
    told = -_STEP

    def plain(done: int, total: int) -> None:
        nonlocal told
        percent = 100 * done // max(total, 1)
        if percent >= told + _STEP:
            told = percent - percent % _STEP
            print(f"{name}: {percent} % of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)

    return weights.pull(name, progress=plain)


def _pull_with_bar(name: str) -> Path:
    columns = ("[bold]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err) as bar:
        # Hidden until there is something to show: weights that are here need no bar.
        task = bar.add_task(name, total=None, visible=False)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return weights.pull(name, progress=show)
