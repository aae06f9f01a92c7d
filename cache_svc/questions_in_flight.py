"""Questions whose answers are being generated, to be compared by meaning with those that come.

Who asks the same in other words may wait for the answer, if everything says already that
it would be served to him once it is stored: the same scope, a similarity far above that of
a hit, the verifier, and the bound on false hits. Whether it is served the store decides
when it is there; so a wrong guess here costs him time, and never an answer.
"""

import asyncio
from collections.abc import Iterator
from typing import Final, NamedTuple

from cache_svc.entry import Key, Place, Query
from cache_svc.lookup import SemanticTier
from cache_svc.vector_index import Vector
from sidecache.errors import Overloaded

# Of one scope; a comparison with each of them takes some microseconds.
MAX_OF_A_PLACE: Final = 256
MAX_WAITING: Final = 4096


class Paraphrase(NamedTuple):
    """A question under way that means what was asked. ``similarity``: cosine of both."""

    key: Key
    similarity: float


class _Question(NamedTuple):
    key: Key
    vector: Vector


class QuestionsInFlight:
    """What is being generated, by scope. Used from the event loop only.

    Args:
        tier: embeds, verifies and bounds as it does for stored answers.
        min_similarity: cosine below which nobody waits, whatever else holds.
    """

    def __init__(self, tier: SemanticTier, min_similarity: float) -> None:
        self._tier = tier
        self._min_similarity = min_similarity
        self._places: dict[Place, dict[bytes, _Question]] = {}
        self._by_key: dict[tuple[str, bytes], _Question] = {}
        self._waiting: dict[tuple[str, bytes], set[asyncio.Future[bool]]] = {}
        self._waiters = 0

    def __len__(self) -> int:
        return len(self._by_key)

    async def vector(self, key: Key) -> Vector | None:
        """The question's vector, which its lookup has just made; None: it cannot be compared.

        Raises:
            SidecacheError: the embedder is not well.
        """
        return await self._tier.queue.vector(key.text) if key.text else None

    def add(self, key: Key, vector: Vector) -> None:
        """This question is being answered from now on."""
        place = self._places.setdefault(key.place, {})
        if len(place) < MAX_OF_A_PLACE or key.exact in place:
            place[key.exact] = self._by_key[key.tenant, key.exact] = _Question(key, vector)

    def ended(self, tenant: str, exact: bytes, *, answered: bool) -> None:
        """Its generation is over; whoever waits for it hears so."""
        question = self._by_key.pop((tenant, exact), None)
        if question is None:
            return
        place = self._places[question.key.place]
        del place[exact]
        if not place:
            del self._places[question.key.place]
        for waiter in self._waiting.pop((tenant, exact), ()):
            if not waiter.done():
                waiter.set_result(answered)

    async def find(self, query: Query, vector: Vector, floor: float) -> Paraphrase | None:
        """The nearest question under way whose answer would be served to this one.

        Args:
            query: what is asked.
            vector: of its text.
            floor: the similarity that its caller and the operator ask of a hit.
        """
        may_judge = self._tier.max_judged
        for near in sorted(self._near(query.key, vector, floor), key=lambda n: -n.similarity):
            if not may_judge:
                break
            may_judge -= 1
            if not self._would_be_served(query.key, near.similarity):
                continue
            accepted = await self._means_the_same(query.key.text, near)
            # Its answer may have come while a thread looked at it.
            if accepted and (near.key.tenant, near.key.exact) in self._by_key:
                return near
        return None

    async def wait(self, tenant: str, exact: bytes, timeout_s: float) -> bool | None:
        """Whether the question got an answer; None: it is under way still.

        Raises:
            Overloaded: too many wait already.
        """
        if (tenant, exact) not in self._by_key:
            return False
        if self._waiters >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} calls wait for answers already")
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault((tenant, exact), set())
        waiting.add(ended)
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await ended
        except TimeoutError:
            return None
        finally:
            self._waiters -= 1
            waiting.discard(ended)
            if not waiting and self._waiting.get((tenant, exact)) is waiting:
                del self._waiting[tenant, exact]

    def _near(self, key: Key, vector: Vector, floor: float) -> Iterator[Paraphrase]:
        for question in self._places.get(key.place, {}).values():
            similarity = float(question.vector @ vector)
            if similarity >= max(floor, self._min_similarity) and question.key.exact != key.exact:
                yield Paraphrase(question.key, similarity)

    def _would_be_served(self, key: Key, similarity: float) -> bool:
        """Whether the bound would let a new answer through, as it stands now."""
        gate = self._tier.gate
        return gate is None or gate.foresee(key, similarity)

    async def _means_the_same(self, text: str, near: Paraphrase) -> bool:
        verifier, other, similarity = self._tier.verifier, near.key.text, near.similarity
        verdict = verifier.screen(text, other, similarity)
        if verdict is None:
            verdict = await asyncio.get_running_loop().run_in_executor(
                self._tier.executor, verifier.verify, text, other, similarity
            )
        return verdict.accepted
