"""API keys: from metadata to a tenant."""

from hashlib import sha256
from pathlib import Path

import pytest

from router.admission.priority import PriorityClass
from router.auth import KeyRing, Principal
from router.tenant_limits import TenantLimits
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
        ("keys = " + "[" * 20_000, "not TOML"),
        ("secret = 1", "only \\[\\[keys\\]\\]"),
        ("keys = 3", "only \\[\\[keys\\]\\]"),
        (f'[[keys]]\ntenant = ""\nsha256 = "{DIGEST}"', "key 1: tenant is ''"),
        (f'[[keys]]\ntenant = "../etc"\nsha256 = "{DIGEST}"', "key 1: tenant"),
        ('[[keys]]\ntenant = "a"\nsha256 = "sk-plain"', "64 lower-case hex digits"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nadmin = "yes"', "admin is 'yes'"),
        (
            f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nkey = "sk"',
            "fields admin, class, max_priority, max_retention, sha256, tenant",
        ),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nclass = "urgent"', "class is 'urgent'"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nmax_priority = 31', "priority is 31"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nmax_priority = true', "is True"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{DIGEST}"\nmax_retention = -1', "may be 0 to 100"),
        ('[[tenants]]\ntenant = "a"\nweight = 0', "tenant 1: weight is 0; it may be 0.001"),
        ('[[tenants]]\ntenant = "a"\nweight = -1.5', "weight is -1.5"),
        ('[[tenants]]\ntenant = "a"\nweight = nan', "weight is nan"),
        ('[[tenants]]\ntenant = "a"\ntokens_per_minute = 0', "tokens_per_minute is 0; it may be 1"),
        ('[[tenants]]\ntenant = "a"\nmax_in_flight = 2.5', "max_in_flight is 2.5"),
        ('[[tenants]]\ntenant = "a"\nburst = 5', "fields max_in_flight, requests_per_minute"),
        ('[[tenants]]\ntenant = "a"\n' * 2, "tenant a stands there twice"),
        ("tenants = [3]", "tenant 1: may have the fields"),
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


def test_keys_have_a_class_and_tenants_have_limits(tmp_path: Path) -> None:
    """A tenant's two keys may be of two classes; its limits are the tenant's."""
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[keys]]\ntenant = "a"\nsha256 = "{sha256(b"sk-i").hexdigest()}"\n'
        'class = "interactive"\nmax_priority = 9\nmax_retention = 80\n'
        f'[[keys]]\ntenant = "a"\nsha256 = "{sha256(b"sk-b").hexdigest()}"\nclass = "batch"\n'
        '[[tenants]]\ntenant = "a"\nweight = 2\ntokens_per_minute = 1000\n'
    )
    ring = KeyRing.load(path)
    interactive = ring.authenticate([("authorization", "Bearer sk-i")])
    batch = ring.authenticate([("authorization", "Bearer sk-b")])
    assert interactive == Principal("a", False, PriorityClass.INTERACTIVE, 9, 80)
    assert batch == Principal("a", False, PriorityClass.BATCH, 0, 0)
    assert ring.limits_of("a") == TenantLimits(weight=2.0, tokens_per_minute=1000)
    assert ring.limits_of("b") == TenantLimits()
