"""Ends a text before the first stop string in it, however tokens cut it."""

from collections.abc import Sequence


class StopStrings:
    """Feeds text through, holding back what may be the beginning of a stop string.

    Args:
        stops: non-empty strings; none means that all text passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next text; return what is surely output, and whether a stop was met.

        After a stop was met, nothing that follows is output.
        """
        if not self._stops:
            return text, False
        text = self._held + text
        # The one that is complete first ends the text; of several that end together,
        # the longest. So it does not matter how tokens cut the text.
        met = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self._held = ""
            return text[: min(met)[1]], True
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
