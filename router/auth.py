"""Who is calling: an API key, looked up by its hash, says which tenant.

The tenant comes from here and from nowhere else. A keys file holds hashes only::

    [[keys]]
    tenant = "acme"
    sha256 = "9f86d081884c7d65…"   # of the key itself
    admin = false
    class = "standard"             # or interactive, batch
    max_priority = 0
    max_retention = 0              # may not pin prefixes

    [[tenants]]
    tenant = "acme"
    weight = 2.0
    tokens_per_minute = 100000
    requests_per_minute = 600
    max_in_flight = 64

Keys are long and random, so a plain SHA-256 is enough: there is nothing to
guess that a slow hash would protect, and this runs for every request.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from router.admission.priority import MAX_PRIORITY, PriorityClass
from router.retention import MAX_RETENTION
from router.tenant_limits import MAX_WEIGHT, UNLIMITED, TenantLimits
from sidecache.errors import Forbidden, SetupError, Unauthenticated

Metadata = Iterable[tuple[str, str | bytes]]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"tenant", "sha256", "admin", "class", "max_priority", "max_retention"}
_COUNTS = ("tokens_per_minute", "requests_per_minute", "max_in_flight")
_MAX_COUNT = 10**12


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were good."""

    tenant: str
    admin: bool = False
    priority_class: PriorityClass = PriorityClass.STANDARD
    max_priority: int = 0
    max_retention: int = 0

    def require_admin(self) -> None:
        """Refuse callers without admin rights.

        Raises:
            Forbidden: the key is a tenant's ordinary one.
        """
        if not self.admin:
            raise Forbidden("this call needs a key with admin = true")


class Authenticator(Protocol):
    """Turns a call's metadata into a principal."""

    def authenticate(self, metadata: Metadata) -> Principal:
        """Return who calls.

        Raises:
            Unauthenticated: no credentials, or unknown ones.
        """
        ...

    def limits_of(self, tenant: str) -> TenantLimits:
        """Return what a tenant may use now."""
        ...


class Insecure:
    """Everybody is the tenant ``default``. For loopback only; serve.py sees to it."""

    def authenticate(self, metadata: Metadata) -> Principal:
        return Principal(
            "default", admin=True, max_priority=MAX_PRIORITY, max_retention=MAX_RETENTION
        )

    def limits_of(self, tenant: str) -> TenantLimits:
        return UNLIMITED


class KeyRing:
    """The keys of one keys file; replaced as a whole when the file changes."""

    def __init__(
        self, principals: Mapping[str, Principal], limits: Mapping[str, TenantLimits]
    ) -> None:
        self._principals = dict(principals)
        self._limits = dict(limits)

    def __len__(self) -> int:
        return len(self._principals)

    def authenticate(self, metadata: Metadata) -> Principal:
        for name, value in metadata:
            if name == "authorization":
                return self._principal(value)
        raise Unauthenticated("no credentials: send metadata 'authorization: Bearer <key>'")

    def limits_of(self, tenant: str) -> TenantLimits:
        return self._limits.get(tenant, UNLIMITED)

    def _principal(self, value: str | bytes) -> Principal:
        text = value if isinstance(value, str) else value.decode("latin-1")
        scheme, _, key = text.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("authorization must read 'Bearer <key>'")
        principal = self._principals.get(hashlib.sha256(key.encode()).hexdigest())
        if principal is None:
            raise Unauthenticated("unknown API key")
        return principal

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """Read a keys file.

        Raises:
            SetupError: the file is missing, unreadable or says something it may not.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SetupError(f"keys_file {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            # The last: it is nested deeper than any TOML that is meant.
            raise SetupError(f"keys_file {path}: not TOML: {error}") from error
        entries, tenants = document.pop("keys", []), document.pop("tenants", [])
        if document or not isinstance(entries, list) or not isinstance(tenants, list):
            raise SetupError(
                f"keys_file {path}: only [[keys]] and [[tenants]] tables may stand in it"
            )
        principals: dict[str, Principal] = {}
        for number, entry in enumerate(entries, 1):
            digest, principal = _read_entry(entry, f"keys_file {path}: key {number}")
            if digest in principals:
                raise SetupError(f"keys_file {path}: key {number} stands there twice")
            principals[digest] = principal
        limits: dict[str, TenantLimits] = {}
        for number, entry in enumerate(tenants, 1):
            tenant, limit = read_limits(entry, f"keys_file {path}: tenant {number}")
            if tenant in limits:
                raise SetupError(f"keys_file {path}: tenant {tenant} stands there twice")
            limits[tenant] = limit
        return cls(principals, limits)


def _read_entry(entry: object, where: str) -> tuple[str, Principal]:
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS:
        raise SetupError(f"{where}: may have the fields {', '.join(sorted(_FIELDS))} only")
    tenant, digest, admin = entry.get("tenant"), entry.get("sha256"), entry.get("admin", False)
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise SetupError(f"{where}: tenant is {tenant!r}; it may be {_TENANT.pattern}")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise SetupError(f"{where}: sha256 must be 64 lower-case hex digits")
    if not isinstance(admin, bool):
        raise SetupError(f"{where}: admin is {admin!r}; it may be true or false")
    max_priority = _read_number(entry, "max_priority", -MAX_PRIORITY, MAX_PRIORITY, where)
    max_retention = _read_number(entry, "max_retention", 0, MAX_RETENTION, where)
    return digest, Principal(tenant, admin, _read_class(entry, where), max_priority, max_retention)


def _read_class(entry: dict[str, object], where: str) -> PriorityClass:
    name = entry.get("class", "standard")
    known = [kind.value for kind in PriorityClass]
    if name not in known:
        raise SetupError(f"{where}: class is {name!r}; it may be {', '.join(known)}")
    return PriorityClass(name)


def _read_number(entry: dict[str, object], name: str, low: int, high: int, where: str) -> int:
    value = entry.get(name, 0)
    if type(value) is not int or not low <= value <= high:
        raise SetupError(f"{where}: {name} is {value!r}; it may be {low} to {high}")
    return value


def read_limits(entry: object, where: str) -> tuple[str, TenantLimits]:
    """One [[tenants]] table.

    Raises:
        SetupError: it says something it may not.
    """
    allowed = {"tenant", "weight", *_COUNTS}
    if not isinstance(entry, dict) or not entry.keys() <= allowed:
        raise SetupError(f"{where}: may have the fields {', '.join(sorted(allowed))} only")
    tenant, weight = entry.get("tenant"), entry.get("weight", 1.0)
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise SetupError(f"{where}: tenant is {tenant!r}; it may be {_TENANT.pattern}")
    if type(weight) not in (int, float) or not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise SetupError(
            f"{where}: weight is {weight!r}; it may be {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    counts: dict[str, int | None] = {}
    for name in _COUNTS:
        value = entry.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= _MAX_COUNT):
            raise SetupError(f"{where}: {name} is {value!r}; it may be 1 to {_MAX_COUNT}")
        counts[name] = value
    return tenant, TenantLimits(float(weight), **counts)
