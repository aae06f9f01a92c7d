"""The policies by their names in settings and benchmarks."""

from collections.abc import Callable
from typing import Literal, get_args

from router.routing.affinity import BoundedAffinity, SessionAffinity, Threshold
from router.routing.cost import LoyalPrefix, PrefixCost, Weights
from router.routing.load import LeastLoaded, PowerOfTwo, RoundRobin
from router.routing.policy import RoutingPolicy

PolicyName = Literal[
    "prefix",
    "cost",
    "session_affinity",
    "bounded_affinity",
    "threshold",
    "power_of_two",
    "least_loaded",
    "round_robin",
]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
DEFAULT_POLICY: PolicyName = "prefix"
# The others never look at what a worker holds, so nobody need find it out.
GO_BY_PREFIX: frozenset[PolicyName] = frozenset(("prefix", "cost", "bounded_affinity", "threshold"))


def make_policy(name: PolicyName, weights: Weights | None = None, seed: int = 0) -> RoutingPolicy:
    """The policy of that name.

    Args:
        name: one of POLICIES.
        weights: of ``prefix``.
        seed: of ``power_of_two``.
    """
    makers: dict[PolicyName, Callable[[], RoutingPolicy]] = {
        "prefix": lambda: LoyalPrefix(weights),
        "cost": PrefixCost,
        "session_affinity": SessionAffinity,
        "bounded_affinity": BoundedAffinity,
        "threshold": Threshold,
        "power_of_two": lambda: PowerOfTwo(seed),
        "least_loaded": LeastLoaded,
        "round_robin": RoundRobin,
    }
    return makers[name]()
