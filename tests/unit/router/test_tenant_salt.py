"""Salts of tenants."""

from router.settings import RoutingSettings
from router.tenant_salt import TenantSalt


def test_a_salt_is_the_tenants_own_and_the_same_on_every_router() -> None:
    """Two routers with one secret agree; tenants and secrets do not."""
    one, other = TenantSalt(RoutingSettings()), TenantSalt(RoutingSettings())
    assert one.of("acme") == other.of("acme") != one.of("umbrella")
    secret = TenantSalt(RoutingSettings(salt_secret="s" * 100))
    assert secret.of("acme") != one.of("acme")
    assert "acme" not in secret.of("acme")
    assert len(one.of("acme")) == 32


def test_salts_can_be_off() -> None:
    """Then all tenants share blocks."""
    assert TenantSalt(RoutingSettings(tenant_salt=False)).of("acme") == ""
