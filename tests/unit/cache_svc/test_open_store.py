"""Opening the store on disk, and being cancelled meanwhile."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_svc.departures import Departures
from cache_svc.durable.opening import Opened
from cache_svc.open_store import open_durable
from cache_svc.plain_index import PlainIndex
from cache_svc.scoped_index import ScopedIndex
from cache_svc.settings import CacheSettings, SemanticSettings, StoreSettings
from cache_svc.stats import Stats
from observability.settings import ServerSettings
from sidecache.errors import SetupError


class SlowClock:
    """Keeps whoever asks it until ``let_go``; with an error it fails then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> float:
        self.asked.set()
        assert self.let_go.wait(20)
        if self.error is not None:
            raise self.error
        return 1000.0


@pytest.fixture
def departures() -> Iterator[Departures]:
    with ThreadPoolExecutor(1) as executor:
        yield Departures(ScopedIndex(4, lambda _: PlainIndex(4), executor, inline_rows=1), Stats())


@contextlib.asynccontextmanager
async def opened_by(
    clock: SlowClock, folder: Path, departures: Departures
) -> AsyncIterator[Opened | None]:
    settings = CacheSettings(
        server=ServerSettings(),
        semantic=SemanticSettings(enabled=False),
        store=StoreSettings(path=folder),
    )
    async with contextlib.AsyncExitStack() as stack:
        yield await open_durable(stack, settings, None, clock, departures)


async def opening_then_cancelled(
    clock: SlowClock, folder: Path, departures: Departures
) -> "asyncio.Task[None]":
    """An opening that was cancelled when the folder was claimed and the answers were being read."""

    async def opening() -> None:
        async with opened_by(clock, folder, departures):
            pytest.fail("it was cancelled")

    task = asyncio.create_task(opening())
    assert await asyncio.to_thread(clock.asked.wait, 20)
    task.cancel()
    return task


async def has_room(folder: Path, departures: Departures) -> bool:
    """Whether the folder is nobody's."""
    clock = SlowClock()
    clock.let_go.set()
    with contextlib.suppress(SetupError):
        async with opened_by(clock, folder, departures) as opened:
            return opened is not None
    return False


async def test_a_cancelled_opening_gives_the_folder_back(
    tmp_path: Path, departures: Departures
) -> None:
    """Whoever comes next, in the same process too, can have it at once."""
    clock, folder = SlowClock(), tmp_path / "store"
    task = await opening_then_cancelled(clock, folder, departures)
    assert not await has_room(folder, departures)
    clock.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await has_room(folder, departures)


async def test_who_cancels_again_does_not_wait_and_the_folder_comes_back_all_the_same(
    tmp_path: Path, departures: Departures
) -> None:
    """Nobody is kept by a slow disk who insists."""
    clock, folder = SlowClock(), tmp_path / "store"
    task = await opening_then_cancelled(clock, folder, departures)
    await asyncio.sleep(0)
    task.cancel()
    # Kept, the error keeps the opening too: no collector gives back what nobody else does.
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert not await has_room(folder, departures)
    clock.let_go.set()
    async with asyncio.timeout(20):
        while not await has_room(folder, departures):
            await asyncio.sleep(0.001)
    assert cancelled.value


async def test_a_cancelled_opening_that_fails_is_cancelled_all_the_same(
    tmp_path: Path, departures: Departures
) -> None:
    """Its failure is nobody's any more; nothing is held."""
    clock, folder = SlowClock(OSError("the disk is gone")), tmp_path / "store"
    task = await opening_then_cancelled(clock, folder, departures)
    clock.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await has_room(folder, departures)
