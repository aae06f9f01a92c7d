"""Sidecache's own index, verifier and bound, as the sidecar joins them."""

import random
import time

import numpy as np

from benchmarks.semantic.methods import Trace, World
from cache_svc.bound.evidence import Evidence, Neighbour, weigh
from cache_svc.bound.scope import Decision, Regime, Rules, ScopeBound
from cache_svc.faiss_index import FaissIndex
from cache_svc.lookup import MAX_JUDGED
from cache_svc.settings import SemanticSettings
from cache_svc.vector_index import Neighbor
from cache_svc.verifier import Look, PairVerifier


class Sidecache:
    """One tenant's scope with default settings but for δ.

    A miss generates an answer, so what a stored request asks for is known, and the
    judge is as good as the labels. Audited hits count as misses here.
    """

    def __init__(
        self, verifier: PairVerifier, settings: SemanticSettings, delta: float, seed: int
    ) -> None:
        self._verifier = verifier
        self._settings = settings
        rules = Rules(delta, settings.bound.audit_share, credit=settings.bound.trusted_false_hits)
        chance = random.Random(seed).random  # noqa: S311  # an experiment, to be repeated
        self.alarms = 0
        self._bound = ScopeBound(rules, chance, self._tell)

    def run(self, world: World) -> Trace:
        index = FaissIndex(world.vectors.shape[1])
        served = np.full(len(world.texts), -1, np.int64)
        seconds = []
        for i, vector in enumerate(world.vectors):
            if not vector.any():
                continue  # beyond the embedder's window
            started = time.perf_counter()
            neighbors = index.search(vector, self._settings.bound.company)
            nearest = self._choose(world, i, neighbors)
            decided = None if nearest is None else self._decide(world, nearest, neighbors)
            seconds.append(time.perf_counter() - started)
            if nearest and decided and self._serves(world, i, nearest, decided):
                served[i] = nearest.id
            else:
                index.add(i, vector)
        return Trace(served, seconds)

    def _choose(self, world: World, i: int, neighbors: list[Neighbor]) -> Neighbor | None:
        """The nearest that passes floor and verifier, judged as the sidecar judges."""
        may_judge = MAX_JUDGED
        near = [
            neighbor
            for neighbor in neighbors[: self._settings.neighbors]
            if neighbor.similarity >= self._settings.min_similarity
        ]
        query, looks = world.texts[i], [Look(world.texts[n.id], n.similarity) for n in near]
        screened = self._verifier.screen_each(query, looks)
        for neighbor, look, verdict in zip(near, looks, screened, strict=True):
            judged = verdict
            if judged is None and may_judge:
                may_judge -= 1
                judged = self._verifier.verify(query, *look)
            if judged is not None and judged.accepted:
                return neighbor
        return None

    def _decide(
        self, world: World, nearest: Neighbor, neighbors: list[Neighbor]
    ) -> tuple[Decision, Evidence]:
        # Everything in the index was a miss, so its sense was paid for.
        voices = [
            Neighbour(n.similarity, world.senses[n.id]) for n in neighbors if n.id != nearest.id
        ]
        evidence = weigh(Neighbour(nearest.similarity, world.senses[nearest.id]), voices)
        return self._bound.decide(nearest.id, evidence), evidence

    def _serves(
        self, world: World, i: int, nearest: Neighbor, decided: tuple[Decision, Evidence]
    ) -> bool:
        decision, evidence = decided
        if decision.serve and not self._bound.draws_audit():
            return True
        wrong = world.senses[i] != world.senses[nearest.id]
        if decision.serve:
            self._bound.audited(nearest.id, evidence, decision.risk, wrong=wrong)
        else:
            self._bound.explored(nearest.id, evidence, wrong=wrong)
        return False

    def _tell(self, regime: Regime) -> None:
        self.alarms += regime is Regime.EXACT_ONLY
