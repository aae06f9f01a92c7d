"""Salts that keep one tenant from timing another's prompts in a worker's KV cache."""

import hashlib
from functools import lru_cache

from router.settings import RoutingSettings

_PERSON = b"sidecache-salt"
_MAX_KEY_BYTES = 64


class TenantSalt:
    """A salt for each tenant, the same on every router with the same secret.

    Without a secret it is a hash of the tenant's name. That separates tenants just as
    well, since only routers may set a salt; a secret also keeps it from whoever can
    reach a worker directly and knows a tenant's name.
    """

    def __init__(self, settings: RoutingSettings) -> None:
        self._is_on = settings.tenant_salt
        self._key = hashlib.blake2b(settings.salt_secret.encode()).digest()[:_MAX_KEY_BYTES]
        self.of = lru_cache(maxsize=4096)(self._make)

    def _make(self, tenant: str) -> str:
        """The tenant's salt, 32 hex digits; empty where salts are off."""
        if not self._is_on:
            return ""
        return hashlib.blake2b(
            tenant.encode(), digest_size=16, key=self._key, person=_PERSON
        ).hexdigest()
