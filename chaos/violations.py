"""What a history can convict a server of. Each says which call, where, and what was there."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken in call number ``call``."""

    call: int


@dataclass(frozen=True, slots=True)
class Lost(Violation):
    """Tokens ``first`` to ``last`` never came, though a later one or the choice's end did."""

    choice: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Repeated(Violation):
    """A token came a second time."""

    choice: int
    position: int


@dataclass(frozen=True, slots=True)
class Reordered(Violation):
    """A token came after one that follows it."""

    choice: int
    position: int


@dataclass(frozen=True, slots=True)
class WrongToken(Violation):
    """A token is not f(seed, position)."""

    choice: int
    position: int
    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class WrongText(Violation):
    """The text is not that of the tokens, or ran ahead of them; from character ``at`` on."""

    choice: int
    at: int
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class Overlong(Violation):
    """A choice went on beyond its end."""

    choice: int
    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class WrongReason(Violation):
    """A choice ended for another reason than it had."""

    choice: int
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class WrongUsage(Violation):
    """Usage figures that do not add up."""

    choice: int
    field: str
    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class NotStarted(Violation):
    """The first event was not `started`, or a stream ended well without any."""

    first: str


@dataclass(frozen=True, slots=True)
class StartedTwice(Violation):
    """A second `started`."""


@dataclass(frozen=True, slots=True)
class NoTerminal(Violation):
    """The call did not end, or ended OK with a choice unfinished."""

    missing: str


@dataclass(frozen=True, slots=True)
class ManyTerminals(Violation):
    """More than one outcome: two statuses, a choice finished twice, or finished and failed."""

    outcomes: str


@dataclass(frozen=True, slots=True)
class AfterTerminal(Violation):
    """Something came after the end of its choice or of the call."""

    event: str
    terminal: str


@dataclass(frozen=True, slots=True)
class WrongMigration(Violation):
    """The stream says it goes on at another offset than it does."""

    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class Malformed(Violation):
    """An event that the contract does not know, or of a choice nobody asked for."""

    event: str


@dataclass(frozen=True, slots=True)
class ForeignAnswer(Violation):
    """The answer, or the stored entry it came from, is another request's or tenant's."""

    of_call: int
    of_tenant: str


@dataclass(frozen=True, slots=True)
class UnexplainedHit(Violation):
    """An answer from the cache that no earlier whole answer of this tenant can explain."""

    entry_id: str
