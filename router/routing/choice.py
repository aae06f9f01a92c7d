"""The policies by their names in settings and benchmarks."""

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


def make_policy(name: PolicyName, weights: Weights | None = None, seed: int = 0) -> RoutingPolicy:
    """The policy of that name.

    Args:
        name: one of POLICIES.
        weights: of ``prefix``.
        seed: of ``power_of_two``.
    """
    match name:
        case "prefix":
            return LoyalPrefix(weights)
        case "cost":
            return PrefixCost()
        case "session_affinity":
            return SessionAffinity()
        case "bounded_affinity":
            return BoundedAffinity()
        case "threshold":
            return Threshold()
        case "power_of_two":
            return PowerOfTwo(seed)
        case "least_loaded":
            return LeastLoaded()
        case "round_robin":
            return RoundRobin()
