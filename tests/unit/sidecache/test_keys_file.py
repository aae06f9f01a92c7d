"""Keys are random, shown once, and kept as hashes in a file that is always whole."""

import hashlib
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from router.auth import KeyRing
from router.tenant_limits import TenantLimits
from sidecache.errors import InvalidRequest, SetupError
from sidecache.keys_file import create_key
from sidecache.keys_limits import set_limits


def test_the_file_knows_the_hash_only(tmp_path: Path) -> None:
    """Tenant, hash and rights are written, mode 0600; the key itself is not."""
    path = tmp_path / "new" / "keys.toml"
    key = create_key(path, tenant="acme", admin=True)
    assert tomllib.loads(path.read_text()) == {
        "keys": [
            {"tenant": "acme", "sha256": hashlib.sha256(key.encode()).hexdigest(), "admin": True}
        ]
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text()


def test_what_was_there_stays(tmp_path: Path) -> None:
    """Older keys and a person's comments survive; keys made at once are all kept."""
    path = tmp_path / "keys.toml"
    create_key(path, tenant="first")
    path.write_text("# ours\n" + path.read_text())
    with ThreadPoolExecutor(4) as pool:
        keys = set(pool.map(lambda _: create_key(path, tenant="more"), range(8)))
    text = path.read_text()
    assert text.startswith("# ours\n")
    assert len(keys) == 8
    assert len(tomllib.loads(text)["keys"]) == 9


@pytest.mark.parametrize("tenant", ["", '"', "a b", "-x", "a" * 65, "a\n"])
def test_a_bad_tenant_is_refused(tmp_path: Path, tenant: str) -> None:
    """A name cannot break out of its TOML string."""
    with pytest.raises(InvalidRequest):
        create_key(tmp_path / "keys.toml", tenant=tenant)
    assert not list(tmp_path.iterdir())


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    """What is not a keys file is not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(SetupError, match="left alone"):
        create_key(path, tenant="acme")
    assert path.read_text() == "dear diary"


def test_limits_are_read_by_the_router_as_they_were_written(tmp_path: Path) -> None:
    """Set, changed in part and taken away; keys, comments and other tenants stay."""
    path = tmp_path / "keys.toml"
    create_key(path, tenant="acme", priority_class="batch", max_priority=-3, max_retention=80)
    set_limits(path, tenant="other", limits={"max_in_flight": 7})
    path.write_text(path.read_text() + "# by hand\n")
    set_limits(path, tenant="acme", limits={"weight": 2.5, "tokens_per_minute": 1000})
    set_limits(path, tenant="acme", limits={"requests_per_minute": 60, "weight": None})
    create_key(path, tenant="later")
    set_limits(path, tenant="other", limits={"max_in_flight": 9})
    ring = KeyRing.load(path)
    assert len(ring) == 2
    assert ring.limits_of("acme") == TenantLimits(1.0, 1000, 60)
    assert ring.limits_of("other") == TenantLimits(max_in_flight=9)
    assert "# by hand" in path.read_text()
    assert 'class = "batch"\nmax_priority = -3\nmax_retention = 80' in path.read_text()


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"weight": 0.0}, "weight: 0; may be 0.001 to 1000"),
        ({"weight": -1.0}, "weight: -1"),
        ({"weight": float("nan")}, "weight: nan"),
        ({"tokens_per_minute": 0}, "tokens_per_minute: 0; may be 1"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(
    tmp_path: Path, limits: dict[str, float | None], problem: str
) -> None:
    """The file is not touched."""
    path = tmp_path / "keys.toml"
    create_key(path, tenant="acme")
    before = path.read_text()
    with pytest.raises(InvalidRequest, match=problem):
        set_limits(path, tenant="acme", limits=limits)
    assert path.read_text() == before


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    """No key is made of it."""
    with pytest.raises(InvalidRequest, match="may be interactive, standard, batch"):
        create_key(tmp_path / "keys.toml", tenant="a", priority_class="urgent")
    with pytest.raises(InvalidRequest, match="may be -30 to 30"):
        create_key(tmp_path / "keys.toml", tenant="a", max_priority=99)
    with pytest.raises(InvalidRequest, match="may be 0 to 100"):
        create_key(tmp_path / "keys.toml", tenant="a", max_retention=101)
    assert not (tmp_path / "keys.toml").exists()
