"""What a tenant may use, as the keys file says it."""

from collections.abc import Callable
from dataclasses import dataclass

MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """One tenant's limits, of each router; None: none of its own.

    Attributes:
        weight: its share beside other tenants of the same class, when not all can run.
        tokens_per_minute: generated and prompt tokens of answers that no cache gave.
        requests_per_minute: of every kind.
        max_in_flight: requests at once.
    """

    weight: float = 1.0
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    max_in_flight: int | None = None


UNLIMITED = TenantLimits()

LimitsOf = Callable[[str], TenantLimits]


def unlimited(_tenant: str) -> TenantLimits:
    """Of every tenant where there is no keys file."""
    return UNLIMITED
