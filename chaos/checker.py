"""THE history checker: proves from a client's log alone that every stream was right.

The engine behind it is scripted (token = f(seed, position)), so every answer is
known before it is asked for. Of each call the checker proves that

- `started` came first and once, and exactly one outcome came last: every choice
  finished and OK, or one error status;
- the tokens are f's, in order, without a gap and without a repeat; the text is
  the tokens' text; the end came where it had to, for the reason it had;
- usage counts what was delivered;
- the answer is this request's and this tenant's: not another call's tokens, not
  an entry that another tenant is served from, and from the cache only what an
  earlier whole answer can have put there.

What it cannot know, it does not excuse: a call without an end is a violation.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chaos.choice_check import ChoiceCheck
from chaos.figures import Figures
from chaos.history import Call, Ended, Received
from chaos.reference import Answer, Reference
from chaos.violations import (
    AfterTerminal,
    ForeignAnswer,
    Malformed,
    ManyTerminals,
    NoTerminal,
    NotStarted,
    StartedTwice,
    UnexplainedHit,
    Violation,
    WrongMigration,
    WrongToken,
)
from sidecache.key import RequestKey, request_key
from sidecache.stream_events import kind_of
from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a history."""

    violations: tuple[Violation, ...]
    figures: Figures

    @property
    def ok(self) -> bool:
        return not self.violations

    def kinds(self) -> set[type[Violation]]:
        return {type(violation) for violation in self.violations}

    def to_json(self, max_violations: int = 50) -> dict[str, Any]:
        """For a journal; the first violations only, and how many there are."""
        return {
            "violations": [str(violation) for violation in self.violations[:max_violations]],
            "num_violations": len(self.violations),
            "figures": asdict(self.figures),
        }


def check(calls: Sequence[Call], reference: Reference, *, closed_world: bool = True) -> Report:
    """Check a history.

    Args:
        calls: all calls of the run, in the order they were sent.
        reference: knows the right answers.
        closed_world: nobody else filled the cache, so every hit must be explained
            by an earlier call in this history.
    """
    world = _World(calls, reference)
    violations: list[Violation] = []
    for call in calls:
        violations += _check_call(call, world)
        violations += _check_owner(call, world, closed_world=closed_world)
    return Report(tuple(violations), Figures.of(calls))


class _World:
    """What the other calls of a history say about one."""

    def __init__(self, calls: Sequence[Call], reference: Reference) -> None:
        self.reference = reference
        self._keys: dict[int, RequestKey] = {}
        self._by_question: defaultdict[bytes, list[Call]] = defaultdict(list)
        self._by_scope: defaultdict[bytes, list[Call]] = defaultdict(list)
        self._by_opening: defaultdict[int, list[tuple[Call, int]]] = defaultdict(list)
        self.entry_owner: dict[str, Call] = {}
        for call in calls:
            key = self._keys[call.number] = self._key(call)
            self._by_question[key.exact].append(call)
            self._by_scope[key.scope].append(call)
            for choice in range(_num_choices(call)):
                for opening in reference.answer(call.request, choice).token_ids[:1]:
                    self._by_opening[opening].append((call, choice))

    def owner(self, tokens: dict[int, int]) -> Call | None:
        """A call whose answer these tokens are, as far as they go."""
        for call, choice in self._by_opening.get(tokens.get(0, -1), ()):
            answer = self.reference.answer(call.request, choice)
            if _fits(answer, tokens):
                return call
        return None

    def source_of(self, call: Call) -> Call | None:
        """An earlier call that can have stored the answer this call was served."""
        key = self._keys[call.number]
        if call.source == "SEMANTIC":
            candidates = self._by_scope[key.scope]
        else:
            candidates = self._by_question[key.exact]
        tokens = _tokens(call, 0)
        for earlier in candidates:
            if (
                earlier is not call
                and earlier.tenant == call.tenant
                and earlier.sent_s <= _started_s(call)
                and _may_have_stored(earlier)
                and _fits(self.reference.answer(earlier.request, 0), tokens)
            ):
                return earlier
        return None

    def _key(self, call: Call) -> RequestKey:
        request = pb.GenerateRequest()
        request.CopyFrom(call.request)
        request.n = call.request.n if call.request.HasField("n") else 1
        request.max_tokens = self.reference.max_tokens(call.request)
        return request_key(request, tenant=call.tenant, model=request.model, revision="")


def _num_choices(call: Call) -> int:
    # A refused request may have asked for billions; nothing came, nothing to check.
    if not any(call.events()):
        return 0
    return call.request.n if call.request.HasField("n") else 1


def _check_call(call: Call, world: _World) -> list[Violation]:
    """Order, outcome, tokens, text and usage of one stream."""
    # A semantic hit is the answer to another prompt, by design.
    asked = (world.source_of(call) or call) if call.source == "SEMANTIC" else call
    choices = [
        ChoiceCheck(
            call.number,
            index,
            world.reference.answer(asked.request, index),
            None if asked is not call else world.reference.prompt_tokens(call.request),
        )
        for index in range(_num_choices(call))
    ]
    violations = _walk(call, choices)
    for choice in choices:
        violations += choice.close()
    violations += _check_outcome(call, choices)
    # One wrong token convicts; a whole answer of somebody else's says more.
    if any(isinstance(violation, WrongToken) for violation in violations):
        for choice in choices:
            owner = world.owner(choice.tokens)
            if owner is not None and not _fits(choice.answer, choice.tokens):
                violations.append(ForeignAnswer(call.number, owner.number, owner.tenant))
    return violations


def _walk(call: Call, choices: Sequence[ChoiceCheck]) -> list[Violation]:
    """Go through the log once, in its order."""
    violations: list[Violation] = []
    ended: Ended | None = None
    first = True
    for entry in call.entries:
        if isinstance(entry, Ended):
            if ended is not None:
                violations.append(ManyTerminals(call.number, f"{ended.code}, {entry.code}"))
            ended = ended or entry
            continue
        kind = kind_of(entry.event)
        if ended is not None:
            violations.append(AfterTerminal(call.number, kind, ended.code))
        if first and kind != "started":
            violations.append(NotStarted(call.number, kind))
        elif not first and kind == "started":
            violations.append(StartedTwice(call.number))
        first = False
        violations += _take(call, kind, entry, choices)
    if ended is None:
        violations.append(NoTerminal(call.number, "status"))
    return violations


def _take(
    call: Call, kind: str, entry: Received, choices: Sequence[ChoiceCheck]
) -> list[Violation]:
    event = entry.event
    match kind:
        case "delta" if event.delta.choice < len(choices):
            return list(choices[event.delta.choice].take(event.delta))
        case "finished" if event.finished.choice < len(choices):
            return list(choices[event.finished.choice].finish(event.finished))
        case "migrated" if event.migrated.offset != choices[0].next_offset:
            return [WrongMigration(call.number, choices[0].next_offset, event.migrated.offset)]
        case "started" | "progress" | "migrated":
            return []
        case _:
            return [Malformed(call.number, str(event).strip() or "empty")]


def _check_outcome(call: Call, choices: Sequence[ChoiceCheck]) -> list[Violation]:
    """Every choice finished and OK, or one error; not half of each."""
    ended = call.ended
    if ended is None:
        return []
    unfinished = [choice.index for choice in choices if choice.finished is None]
    if ended.code == "OK":
        missing: list[Violation] = [
            NoTerminal(call.number, f"finished of choice {index}") for index in unfinished
        ]
        if call.started is None:
            missing += [NotStarted(call.number, ""), NoTerminal(call.number, "finished")]
        return missing
    # Without an ErrorInfo it is the client's own transport that failed, and that
    # can happen between the last event and the status.
    if choices and not unfinished and ended.reason:
        return [ManyTerminals(call.number, f"finished, {ended.code}")]
    return []


def _check_owner(call: Call, world: _World, *, closed_world: bool) -> list[Violation]:
    """That an answer from the cache was this tenant's to get."""
    if call.started is None or call.source not in {"EXACT", "SEMANTIC"}:
        return []
    violations: list[Violation] = []
    entry_id = call.started.cache_entry_id
    owner = world.entry_owner.setdefault(entry_id, call)
    if owner.tenant != call.tenant:
        violations.append(ForeignAnswer(call.number, owner.number, owner.tenant))
    if closed_world and world.source_of(call) is None:
        violations.append(UnexplainedHit(call.number, entry_id))
    return violations


def _may_have_stored(call: Call) -> bool:
    """Whether a whole answer can have come of it, as far as its client knows."""
    if call.source == "EXACT":
        return False
    return call.ended is None or call.code == "OK" or call.ended.by_client


def _started_s(call: Call) -> float:
    return next(entry.at_s for entry in call.entries if isinstance(entry, Received))


def _tokens(call: Call, choice: int) -> dict[int, int]:
    return {
        event.delta.offset + index: token
        for event in call.events()
        if event.delta.choice == choice
        for index, token in enumerate(event.delta.token_ids)
    }


def _fits(answer: Answer, tokens: dict[int, int]) -> bool:
    ids = answer.token_ids
    return all(at < len(ids) and ids[at] == token for at, token in tokens.items())
