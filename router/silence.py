"""How long a worker has said nothing though words of it were due, and when that is odd.

Pure arithmetic over looks at one worker; router/quiet_watch.py takes the looks.
"""

import enum
import math

from router.settings import QuietSettings


class Finding(enum.Enum):
    """What a look at a worker says."""

    SPEAKS = enum.auto()
    PATIENT = enum.auto()
    ASK = enum.auto()
    ASKED = enum.auto()
    GONE = enum.auto()


class Silence:
    """The silence of one worker on all its streams, against what is usual for it.

    A silence that turned out to be alive is usual from then on, and fades; one that ends
    with the worker given up teaches nothing.

    Attributes:
        silent_s: since its last word, in time that was looked at.
        usual_s: the longest silence of late that it came back from.
    """

    def __init__(self, settings: QuietSettings) -> None:
        self._settings = settings
        self._heard_at = -math.inf
        self._asked_at_s: float | None = None
        self.silent_s = 0.0
        self.usual_s = 0.0
        self._ask_at_s = self._patience_s()

    def look(
        self,
        heard_at: float,
        elapsed_s: float,
        *,
        is_due: bool,
        answers_in_s: float | None = None,
    ) -> Finding:
        """Take in one look.

        Args:
            heard_at: when the worker last said anything; any clock.
            elapsed_s: since the look before, or less where that look was late: what the
                worker has said meanwhile may lie unread.
            is_due: whether a word of it is due on some stream.
            answers_in_s: the slowest answer of late to a small question; None: not known.
        """
        self.usual_s *= math.exp(-elapsed_s / self._settings.memory_s)
        if heard_at != self._heard_at or not is_due:
            self._heard_at = heard_at
            self._speaks()
            return Finding.SPEAKS
        self.silent_s += elapsed_s
        if self._asked_at_s is not None:
            waited_s = self.silent_s - self._asked_at_s
            return Finding.GONE if waited_s >= self._answer_s(answers_in_s) else Finding.ASKED
        if self.silent_s < self._ask_at_s:
            return Finding.PATIENT
        self._asked_at_s = self.silent_s
        return Finding.ASK

    def answered(self) -> None:
        """The worker was asked and answered: it lives, and has nothing to say yet."""
        self._asked_at_s = None
        self.usual_s = max(self.usual_s, self.silent_s)
        self._ask_at_s = self.silent_s + self._patience_s()

    def _speaks(self) -> None:
        self.usual_s = max(self.usual_s, self.silent_s)
        self.silent_s = 0.0
        self._asked_at_s = None
        self._ask_at_s = self._patience_s()

    def _answer_s(self, answers_in_s: float | None) -> float:
        """How long an answer may take."""
        settings = self._settings
        if answers_in_s is None:
            return settings.answer_s
        return min(max(settings.least_answer_s, settings.factor * answers_in_s), settings.answer_s)

    def _patience_s(self) -> float:
        """How long a silence is nothing."""
        settings = self._settings
        return min(max(settings.quiet_s, settings.factor * self.usual_s), settings.max_quiet_s)
