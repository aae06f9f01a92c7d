"""The learned pair verifier: the guard's surest rules, then a model that reads both prompts.

Most look-alikes differ in a number, a negation, an opposite or a direction; rules
see that in a fraction of a millisecond. What they leave goes to a quick filter,
which refuses what the model is sure to refuse, and then to a small cross-encoder,
which must be the surer the more the guard's bolder rules object.
Why this and not rules alone: docs/decisions/0011-pair-verifier.md.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cache_svc.lexical_guard import LexicalGuard
from cache_svc.look_alike_filter import LookAlikeFilter
from cache_svc.pair_scorer import PairScorer
from cache_svc.verifier import ACCEPTED, Look, Verdict


class Bounds(NamedTuple):
    """How sure the model must be, as logits; chosen by training/verifier/tune.py.

    Attributes:
        same_words: where both prompts say the same words of meaning.
        added: where one says more, or both are reworded throughout.
        objected: where one of the guard's bolder rules would veto.
        foreseen: a logit of the quick filter under which the model is not asked;
            chosen by training/verifier/tune_filter.py.
    """

    same_words: float = -4.0
    added: float = 1.5
    objected: float = 1.5
    foreseen: float = -3.5


class LearnedVerifier:
    """Vetoes what rules or the model refuse; accepts only what both let pass.

    Args:
        scorer: the model; None: the one that ships.
        guard: the rules; None: those of the lexical guard.
        bounds: how sure the model must be.
        look_alikes: the quick filter; None: the one that ships.

    Raises:
        SetupError: the model's files, or the embedder's weights it builds on, are
            missing or damaged.
    """

    def __init__(
        self,
        scorer: PairScorer | None = None,
        guard: LexicalGuard | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  # a tuple: nothing can change it
        look_alikes: LookAlikeFilter | None = None,
    ) -> None:
        self._bounds = bounds
        self._scorer = PairScorer() if scorer is None else scorer
        self._guard = LexicalGuard() if guard is None else guard
        self._look_alikes = LookAlikeFilter() if look_alikes is None else look_alikes

    def screen(self, query: str, candidate: str, similarity: float) -> Verdict | None:
        """Veto by the surest rules or the quick filter, accept what says the same."""
        ruled = self._rule(query, candidate)
        if ruled is not None:
            return ruled
        return self._foresee(self._look_alikes.score(query, candidate, similarity))

    def screen_each(self, query: str, candidates: Sequence[Look]) -> Iterator[Verdict | None]:
        """The same; what the rules leave goes through the quick filter together.

        Candidates behind one that the rules accept wait until they are asked for:
        a lookup hardly ever does.
        """
        rest = iter(candidates)
        while True:
            ahead = list(self._up_to_accepted(query, rest))
            if not ahead:
                return
            left = [candidate for candidate, ruled in ahead if ruled is None]
            foreseen = iter(self._look_alikes.score_each(query, left))
            for _, ruled in ahead:
                yield self._foresee(next(foreseen)) if ruled is None else ruled

    def _up_to_accepted(
        self, query: str, rest: Iterator[Look]
    ) -> Iterator[tuple[Look, Verdict | None]]:
        """What the rules say of the candidates up to the first that they accept."""
        for candidate in rest:
            ruled = self._rule(query, candidate.text)
            yield candidate, ruled
            if ruled is ACCEPTED:
                return

    def _rule(self, query: str, candidate: str) -> Verdict | None:
        """A veto of the surest rules, or acceptance of what says the same."""
        fact = self._guard.facts(query, candidate)
        if not fact.accepted:
            return fact
        return ACCEPTED if self._guard.says_the_same(query, candidate) else None

    def _foresee(self, logit: float | None) -> Verdict | None:
        """A veto where the quick filter's logit foresees the model's own."""
        if logit is None or logit >= self._bounds.foreseen:
            return None
        reason = f"filter: {logit:.2f} is under {self._bounds.foreseen:.2f}"
        return Verdict(accepted=False, rule="filter", reason=reason)

    def verify(self, query: str, candidate: str, similarity: float) -> Verdict:
        """Ask the rules, and the model about what they leave."""
        screened = self.screen(query, candidate, similarity)
        if screened is not None:
            return screened
        logit = self._scorer.score(query, candidate)
        if logit is None:
            return Verdict(
                accepted=False, rule="model", reason="model: both prompts together are too long"
            )
        bound, objection = self._bound(query, candidate)
        if logit >= bound:
            return ACCEPTED
        return Verdict(
            accepted=False,
            rule="model",
            reason=f"model: {logit:.2f} is under {bound:.2f}{objection}",
        )

    def _bound(self, query: str, candidate: str) -> tuple[float, str]:
        """The least logit that is enough, and which rule objects."""
        only_one, only_other, _ = self._guard.difference(query, candidate)
        if not only_one and not only_other:
            return self._bounds.same_words, ""
        objection = self._guard.wordings(query, candidate)
        if objection.accepted:
            return self._bounds.added, ""
        return self._bounds.objected, f" ({objection.reason})"
