"""The policy that the settings ask for."""

import secrets

from router.routing.choice import make_policy
from router.routing.cost import Weights
from router.routing.policy import RoutingPolicy
from router.settings import RoutingSettings


def make_configured(settings: RoutingSettings) -> RoutingPolicy:
    """Routers draw differently, or power of two choices would not spread them."""
    weights = Weights(**settings.weights.model_dump())
    return make_policy(settings.policy, weights, seed=secrets.randbits(64))
