"""Who is calling: an API key, looked up by its hash, says which tenant.

The tenant comes from here and from nowhere else. A keys file holds hashes only::

    [[keys]]
    tenant = "acme"
    sha256 = "9f86d081884c7d65…"   # of the key itself
    admin = false

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

from sidecache.errors import Forbidden, SetupError, Unauthenticated

Metadata = Iterable[tuple[str, str | bytes]]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"tenant", "sha256", "admin"}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were good."""

    tenant: str
    admin: bool = False

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


class Insecure:
    """Everybody is the tenant ``default``. For loopback only; serve.py sees to it."""

    def authenticate(self, metadata: Metadata) -> Principal:
        return Principal("default", admin=True)


class KeyRing:
    """The keys of one keys file; replaced as a whole when the file changes."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self._principals = dict(principals)

    def __len__(self) -> int:
        return len(self._principals)

    def authenticate(self, metadata: Metadata) -> Principal:
        for name, value in metadata:
            if name == "authorization":
                return self._principal(value)
        raise Unauthenticated("no credentials: send metadata 'authorization: Bearer <key>'")

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
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SetupError(f"keys_file {path}: not TOML: {error}") from error
        entries = document.pop("keys", [])
        if document or not isinstance(entries, list):
            raise SetupError(f"keys_file {path}: only [[keys]] tables may stand in it")
        principals: dict[str, Principal] = {}
        for number, entry in enumerate(entries, 1):
            digest, principal = _read_entry(entry, f"keys_file {path}: key {number}")
            if digest in principals:
                raise SetupError(f"keys_file {path}: key {number} stands there twice")
            principals[digest] = principal
        return cls(principals)


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
    return digest, Principal(tenant, admin)
