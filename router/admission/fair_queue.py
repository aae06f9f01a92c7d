"""Whose turn it is: weighted fairness among priority classes, and among tenants within each.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), hierarchical as in section 5 of that
paper, counting tokens as "Fairness in Serving Large Language Models" does (Sheng et al., 2024):
every tenant has a tag that grows by cost / weight with each request that starts, and the
waiting tenant with the lowest tag is next. Two tenants that both wait all the time differ
by no more than one request of each, over any interval; nobody who waits is starved, as
everybody's tag grows but his; and who was idle neither gains nor owes by that.
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from router.admission.priority import PriorityClass


@dataclass(eq=False, slots=True)
class Claim:
    """One request's claim on the workers.

    Attributes:
        weight: of the tenant.
        cost: in tokens, reserved: prompt and all that may be generated.
        slots: sequences it runs as.
        priority: among its tenant's own; higher is first.
    """

    tenant: str
    priority_class: PriorityClass
    weight: float
    cost: int
    slots: int = 1
    priority: int = 0
    order: int = 0


def _by_priority(claim: Claim) -> tuple[int, int]:
    return -claim.priority, claim.order


@dataclass(eq=False, slots=True)
class _Sharer:
    """One of those who share a level: a tenant in its class, or a class.

    Attributes:
        tag: start tag of its next request, in tokens over weight.
        tokens: waiting.
    """

    weight: float
    tag: float = 0.0
    tokens: int = 0

    def joins(self, virtual_time: float) -> None:
        """It was not waiting and now is: what it did not use is gone."""
        self.tag = max(self.tag, virtual_time)

    def work_before(self, tag: float) -> float:
        """Tokens of those that wait that start before another's tag; of equals it is first."""
        if not self.tokens or self.tag > tag:
            return 0.0
        # Whatever has started by then starts as a whole.
        return min(float(self.tokens), (tag - self.tag) * self.weight + self.next_cost())

    def next_cost(self) -> int:
        """Tokens of the next claim of those that wait."""
        raise NotImplementedError


@dataclass(eq=False, slots=True)
class _Tenant(_Sharer):
    waiting: list[Claim] = field(default_factory=list)

    def next_cost(self) -> int:
        return self.waiting[0].cost


@dataclass(eq=False, slots=True)
class _Class(_Sharer):
    """A class; its tenants share a virtual time of their own."""

    tenants: dict[str, _Tenant] = field(default_factory=dict)
    virtual_time: float = 0.0
    waiting: int = 0

    def next_cost(self) -> int:
        return self.next_tenant().waiting[0].cost

    def next_tenant(self) -> _Tenant:
        return min((t for t in self.tenants.values() if t.waiting), key=lambda t: t.tag)


class FairQueue:
    """Claims that wait, in the order of their turns.

    Args:
        class_weights: of every class; above zero.
    """

    def __init__(self, class_weights: dict[PriorityClass, float]) -> None:
        self._classes = {kind: _Class(weight) for kind, weight in class_weights.items()}
        self._virtual_time = 0.0
        self._order = count()
        self._waiting = 0
        self._tokens = 0

    def reweigh(self, class_weights: dict[PriorityClass, float]) -> None:
        """Share by other weights from the next turn on."""
        for kind, weight in class_weights.items():
            self._classes[kind].weight = weight

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[Claim]:
        for kind in self._classes.values():
            for tenant in kind.tenants.values():
                yield from tenant.waiting

    @property
    def tokens(self) -> int:
        """Tokens of the claims that wait."""
        return self._tokens

    def push(self, claim: Claim) -> None:
        """Let a claim wait for its turn."""
        kind, tenant = self._sharers(claim)
        if not kind.waiting:
            kind.joins(self._virtual_time)
        if not tenant.waiting:
            tenant.joins(kind.virtual_time)
        claim.order = next(self._order)
        insort(tenant.waiting, claim, key=_by_priority)
        self._count(kind, tenant, 1, claim.cost)

    def first(self) -> Claim | None:
        """Whose turn it is; None: nobody waits."""
        if not self._waiting:
            return None
        kind = min((k for k in self._classes.values() if k.waiting), key=lambda k: k.tag)
        return kind.next_tenant().waiting[0]

    def remove(self, claim: Claim) -> None:
        """Forget a claim that waits; it has cost its tenant nothing."""
        kind, tenant = self._sharers(claim)
        tenant.waiting.remove(claim)
        self._count(kind, tenant, -1, -claim.cost)

    def start(self, claim: Claim, *, waited: bool) -> None:
        """A claim starts: its tenant and class are charged."""
        if waited:
            self.remove(claim)
        kind, tenant = self._sharers(claim)
        if not kind.waiting and not waited:
            kind.joins(self._virtual_time)
        if not tenant.waiting and not waited:
            tenant.joins(kind.virtual_time)
        self._virtual_time = max(self._virtual_time, kind.tag)
        kind.virtual_time = max(kind.virtual_time, tenant.tag)
        kind.tag += claim.cost / kind.weight
        tenant.tag += claim.cost / tenant.weight

    def settle(self, claim: Claim, used: int) -> None:
        """Charge what a claim has really used instead of what it reserved."""
        kind, tenant = self._sharers(claim)
        tenant.tag -= (claim.cost - used) / tenant.weight
        kind.tag -= (claim.cost - used) / kind.weight

    def work_before(self, claim: Claim) -> float:
        """Tokens of those that wait now that would start before a new claim."""
        kind, tenant = self._sharers(claim)
        ahead = sum(c.cost for c in tenant.waiting if c.priority >= claim.priority)
        own_tag = max(tenant.tag, kind.virtual_time) + ahead / tenant.weight
        in_class = ahead + sum(
            other.work_before(own_tag) for other in kind.tenants.values() if other is not tenant
        )
        class_tag = max(kind.tag, self._virtual_time) + in_class / kind.weight
        return in_class + sum(
            other.work_before(class_tag) for other in self._classes.values() if other is not kind
        )

    def most_excessive(self) -> Claim | None:
        """The newest claim of whoever waits with most tokens for his weight.

        When no more may wait it is the one to make room (longest queue drop, as in
        "Stochastic Fairness Queueing", McKenney, 1990), or one tenant could fill the queue.
        """
        waiting = (
            (tenant.tokens / (tenant.weight * kind.weight), tenant)
            for kind in self._classes.values()
            for tenant in kind.tenants.values()
            if tenant.waiting
        )
        worst = max(waiting, key=lambda pair: pair[0], default=None)
        return None if worst is None else max(worst[1].waiting, key=lambda claim: claim.order)

    def forget_idle(self) -> None:
        """Nothing runs and nobody waits: nobody owes anything."""
        self._virtual_time = 0.0
        for kind in self._classes.values():
            kind.tenants.clear()
            kind.virtual_time = kind.tag = 0.0

    def _sharers(self, claim: Claim) -> tuple[_Class, _Tenant]:
        kind = self._classes[claim.priority_class]
        tenant = kind.tenants.get(claim.tenant)
        if tenant is None:
            tenant = kind.tenants[claim.tenant] = _Tenant(claim.weight)
        tenant.weight = claim.weight
        return kind, tenant

    def _count(self, kind: _Class, tenant: _Tenant, claims: int, tokens: int) -> None:
        tenant.tokens += tokens
        kind.tokens += tokens
        kind.waiting += claims
        self._waiting += claims
        self._tokens += tokens
