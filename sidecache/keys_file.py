"""The router's keys file: random keys, of which only the hashes are kept.

::

    [[keys]]
    tenant = "acme"
    sha256 = "9f86d081884c7d65…"   # of the key
    admin = false
    class = "standard"             # or interactive, batch
    max_priority = 0
    max_retention = 0              # of prefixes that its requests may pin
"""

import hashlib
import re
import secrets
import tomllib
from pathlib import Path

from sidecache.durable_file import locked, write_atomically
from sidecache.errors import InvalidRequest, SetupError

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY_BYTES = 32
LOCK_WAIT_S = 10.0
CLASSES = ("interactive", "standard", "batch")
MAX_PRIORITY = 30
MAX_RETENTION = 100


def create_key(
    path: Path,
    *,
    tenant: str,
    admin: bool = False,
    priority_class: str = "",
    max_priority: int = 0,
    max_retention: int = 0,
) -> str:
    """Add a new random key to a keys file, which is made if need be, and return it.

    The key itself is nowhere on disk: whoever calls shows it once. The file is
    replaced as a whole, with mode 0600.

    Raises:
        InvalidRequest: not a tenant's name, a class, a priority or a retention.
        SetupError: the file cannot be written, or is not a keys file.
    """
    check_tenant(tenant)
    standing = _standing(priority_class, max_priority, max_retention)
    key = "sc-" + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = f'[[keys]]\ntenant = "{tenant}"\nsha256 = "{digest}"\nadmin = {str(admin).lower()}\n'
    entry += standing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock_path(path), wait_s=LOCK_WAIT_S):
            before = read_keys_text(path)
            write_atomically(path, (before + ("\n" if before else "") + entry).encode())
    except TimeoutError as error:
        raise SetupError(str(error)) from error
    except OSError as error:
        raise SetupError(f"cannot write the keys file {path}: {error.strerror}") from error
    return key


def check_tenant(tenant: str) -> None:
    """Refuse what is not a tenant's name.

    Raises:
        InvalidRequest: it is none.
    """
    if not _TENANT.fullmatch(tenant):
        raise InvalidRequest(
            f"{tenant!r} is not a tenant's name: up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit",
            field="tenant",
        )


def lock_path(path: Path) -> Path:
    """What whoever changes the file holds meanwhile."""
    return path.with_name(f".{path.name}.lock")


def _standing(priority_class: str, max_priority: int, max_retention: int) -> str:
    if priority_class and priority_class not in CLASSES:
        raise InvalidRequest(
            f"{priority_class!r}; may be {', '.join(CLASSES)}", field="priority class"
        )
    if not -MAX_PRIORITY <= max_priority <= MAX_PRIORITY:
        raise InvalidRequest(
            f"{max_priority}; may be {-MAX_PRIORITY} to {MAX_PRIORITY}", field="max priority"
        )
    if not 0 <= max_retention <= MAX_RETENTION:
        raise InvalidRequest(f"{max_retention}; may be 0 to {MAX_RETENTION}", field="max retention")
    lines = f'class = "{priority_class}"\n' if priority_class else ""
    lines += f"max_priority = {max_priority}\n" if max_priority else ""
    return lines + (f"max_retention = {max_retention}\n" if max_retention else "")


def read_keys_text(path: Path) -> str:
    """The file's text, so that what people wrote into it stays as they wrote it.

    Raises:
        SetupError: it is not a keys file.
    """
    if not path.exists():
        return ""
    try:
        text = path.read_text(encoding="utf-8")
        keys = tomllib.loads(text).get("keys", [])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{path} is not a keys file, and was left alone: {error}") from error
    if not isinstance(keys, list):
        raise SetupError(f"{path} is not a keys file, and was left alone: keys is no list")
    return text
