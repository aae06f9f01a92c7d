"""The bounds of all tenants: one for each, and one for each namespace that has its own δ."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from cache_svc.bound.scope import Regime, Rules, ScopeBound

# Told of a tenant whose hits left their bound or may be served again.
RegimeListener = Callable[[str, str, Regime], None]


@dataclass(frozen=True, slots=True)
class BoundRules:
    """What applies to whom.

    Attributes:
        default: for every tenant without an override; its bound is over all of the
            tenant's namespaces together.
        deltas: δ by "tenant" or "tenant/namespace"; a namespace named here has a
            bound of its own.
        max_scopes: bounds kept; the one asked longest ago starts anew beyond it.
    """

    default: Rules
    deltas: Mapping[str, float] = field(default_factory=dict)
    max_scopes: int = 1000


class Bounds:
    """Finds the bound that a request falls under; ``on_judged`` hears of changed records.

    Namespaces are the callers' to choose, so only those the operator named have a
    bound, and the trust of a new one, of their own.
    """

    def __init__(
        self,
        rules: BoundRules,
        random: Callable[[], float],
        on_regime: RegimeListener,
        on_judged: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._random = random
        self._on_regime = on_regime
        self._on_judged = on_judged
        self._scopes: OrderedDict[tuple[str, str], ScopeBound] = OrderedDict()

    def of(self, tenant: str, namespace: str) -> ScopeBound:
        """The bound of a tenant's namespace."""
        own = namespace if self._is_named(tenant, namespace) else ""
        bound = self._scopes.get((tenant, own))
        if bound is None:
            bound = self._scopes[tenant, own] = self._new(tenant, own)
            if len(self._scopes) > self._rules.max_scopes:
                self._scopes.popitem(last=False)
        else:
            self._scopes.move_to_end((tenant, own))
        return bound

    def own(self, tenant: str, namespace: str) -> ScopeBound | None:
        """The bound of exactly this namespace, "" being all without one; None: it has none."""
        if namespace and not self._is_named(tenant, namespace):
            return None
        return self.of(tenant, namespace)

    def items(self) -> Iterator[tuple[tuple[str, str], ScopeBound]]:
        """Every bound there is, by its tenant and namespace."""
        return iter(self._scopes.items())

    def _is_named(self, tenant: str, namespace: str) -> bool:
        return f"{tenant}/{namespace}" in self._rules.deltas

    def _new(self, tenant: str, namespace: str) -> ScopeBound:
        default, deltas = self._rules.default, self._rules.deltas
        delta = deltas.get(tenant, default.delta)
        if namespace:
            delta = deltas[f"{tenant}/{namespace}"]
        return ScopeBound(
            replace(default, delta=delta),
            self._random,
            lambda regime: self._on_regime(tenant, namespace, regime),
            self._on_judged,
        )
