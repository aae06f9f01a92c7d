"""API keys: from metadata to a tenant."""

from hashlib import sha256
from pathlib import Path

import pytest

from router.auth import KeyRing, Principal
from sidecache.errors import Forbidden, SetupError, Unauthenticated


def write_keys(path: Path, **tenants: str) -> Path:
    path.write_text(
        "".join(
            f'[[keys]]\ntenant = "{tenant}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'
            for tenant, key in tenants.items()
        )
    )
    return path


def test_a_key_says_which_tenant(tmp_path: Path) -> None:
    """The tenant follows from the key and from nothing else in the metadata."""
    ring = KeyRing.load(write_keys(tmp_path / "keys.toml", acme="sk-a", umbrella="sk-u"))
    metadata = [("tenant", "umbrella"), ("authorization", "Bearer sk-a")]
    assert ring.authenticate(metadata) == Principal("acme", admin=False)
    assert ring.authenticate([("authorization", b"bearer sk-u")]).tenant == "umbrella"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ([], "no credentials"),
        ([("authorization", "sk-a")], "must read 'Bearer <key>'"),
        ([("authorization", "Basic sk-a")], "must read 'Bearer <key>'"),
        ([("authorization", "Bearer ")], "must read 'Bearer <key>'"),
        ([("authorization", "Bearer wrong")], "unknown API key"),
        ([("authorization", "Bearer wrong"), ("authorization", "Bearer sk-a")], "unknown"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, metadata: list[tuple[str, str]], problem: str
) -> None:
    """Missing, malformed and unknown credentials fail closed."""
    ring = KeyRing.load(write_keys(tmp_path / "keys.toml", acme="sk-a"))
    with pytest.raises(Unauthenticated, match=problem):
        ring.authenticate(metadata)


def test_the_key_itself_is_not_in_a_refusal(tmp_path: Path) -> None:
    """A mistyped key does not end up in somebody's log."""
    ring = KeyRing.load(write_keys(tmp_path / "keys.toml", acme="sk-a"))
    with pytest.raises(Unauthenticated) as refused:
        ring.authenticate([("authorization", "Bearer sk-mistyped")])
    assert "mistyped" not in str(refused.value)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keys = [", "not TOML"),
        ("secret = 1", "only \\[\\[keys\\]\\]"),
        ("keys = 3", "only \\[\\[keys\\]\\]"),
        (f'[[keys]]\ntenant = ""\nsha256 = "{DIGEST}"', "key 1: tenant is ''"),
        (f'[[keys]]\ntenant = "../etc"\nsha256 = "{DIGEST}"', "key 1: tenant"),
        ('[[keys]]\ntenant = "a"\nsha256 = "sk-plain"', "64 lower-case hex digits"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nadmin = "yes"', "admin is 'yes'"),
        (
            f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nkey = "sk"',
            "fields admin, sha256, tenant",
        ),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\n' * 2, "key 2 stands there twice"),
    ],
)
def test_a_bad_keys_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    """Each mistake in the file is named with its place; no key is half taken."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=problem):
        KeyRing.load(path)


def test_a_missing_keys_file_is_named(tmp_path: Path) -> None:
    """The path stands in the error."""
    with pytest.raises(SetupError, match=r"absent\.toml: No such file"):
        KeyRing.load(tmp_path / "absent.toml")


def test_admin_rights_are_asked_for() -> None:
    """An ordinary key does not steer the router."""
    Principal("a", admin=True).require_admin()
    with pytest.raises(Forbidden):
        Principal("a").require_admin()
