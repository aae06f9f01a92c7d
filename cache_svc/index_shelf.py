"""Where the indexes of large scopes lie between two runs: one folder, generation by generation.

A generation is a snapshot (index_snapshot.py) in a folder of its own, and becomes the
scope's newest only when it is whole. The one before it goes after that, so that a
process killed at any moment leaves a sound one behind. None of it is ever needed: the
store has every vector.
"""

import logging
import shutil
from hashlib import blake2b
from pathlib import Path

from cache_svc.entry import Place
from cache_svc.index_snapshot import Origin, load, save
from cache_svc.ivf_index import IvfIndex

_log = logging.getLogger(__name__)

_NAME_BYTES = 16


class IndexShelf:
    """Snapshots of the indexes of all scopes. Used from one thread at a time.

    Args:
        folder: private to one process; made with the first snapshot.
        fingerprint: of the embedder in use; snapshots of others are ignored.
        dimension: of its vectors.
    """

    def __init__(self, folder: Path, fingerprint: str, dimension: int) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._dimension = dimension

    @staticmethod
    def name(place: Place) -> str:
        """What a scope is called here: 32 hex digits that tell neither tenant nor scope."""
        text = place.tenant.encode() + b"\0" + place.scope
        return blake2b(text, digest_size=_NAME_BYTES).hexdigest()

    def names(self) -> set[str]:
        """The scopes that have a snapshot, sound or not."""
        return {path.name for path in _folders(self._folder)}

    def save(self, place: Place, index: IvfIndex) -> None:
        """Make this index the scope's newest generation and drop the older ones.

        Raises:
            OSError: the disk is full or not writable; the older ones are still there.
        """
        home = self._home(place)
        older = _generations(home)
        number = 1 + int(older[0].name) if older else 1
        newest = home / str(number)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        try:
            save(index, newest, self._origin(place))
        except BaseException:
            shutil.rmtree(newest, ignore_errors=True)
            raise
        for generation in older:
            shutil.rmtree(generation, ignore_errors=True)

    def load(self, place: Place) -> IvfIndex | None:
        """The scope's newest sound generation; what is not sound costs a log line."""
        loaded = (load(path, self._origin(place)) for path in _generations(self._home(place)))
        return next((index for index in loaded if index is not None), None)

    def discard(self, place: Place) -> None:
        """Drop all generations of a scope."""
        shutil.rmtree(self._home(place), ignore_errors=True)

    def keep_only(self, names: set[str]) -> None:
        """Drop the snapshots of every other scope."""
        for path in _folders(self._folder):
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _home(self, place: Place) -> Path:
        return self._folder / self.name(place)

    def _origin(self, place: Place) -> Origin:
        # An id is never used for a second vector, so no generation of vectors can be
        # mistaken for another of the same embedder.
        return Origin(self._fingerprint, 0, self.name(place), self._dimension)


def _generations(home: Path) -> list[Path]:
    """The folders of a scope's generations, newest first."""
    return sorted(
        (path for path in _folders(home) if path.name.isdecimal()),
        key=lambda path: int(path.name),
        reverse=True,
    )


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _log.warning("no index snapshots are used: %s", error)
        return []
