"""Which stored answers say the same: entries judged alike share a sense."""

from collections import OrderedDict
from collections.abc import Callable


class Senses:
    """A sense for each entry that was ever judged, by its id.

    A sense is named after the entry that had it first; the name outlives the
    entry, since others may still share it.

    Args:
        max_entries: the sense given longest ago is forgotten beyond this number; its
            entry then has no voice among its neighbours.
        on_given: told of every entry that gets a sense.
    """

    def __init__(self, max_entries: int, on_given: Callable[[int], None] = lambda _: None) -> None:
        self._max_entries = max_entries
        self._on_given = on_given
        self._senses: OrderedDict[int, int] = OrderedDict()

    def of(self, entry_id: int) -> int | None:
        """The sense of an entry's answer; None: never judged."""
        return self._senses.get(entry_id)

    def give(self, entry_id: int, sense: int) -> None:
        """Note what an entry's answer says."""
        self._senses[entry_id] = sense
        if len(self._senses) > self._max_entries:
            self._senses.popitem(last=False)
        self._on_given(entry_id)
