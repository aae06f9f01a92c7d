"""Keys are random, shown once, and kept as hashes in a file that is always whole."""

import hashlib
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecache.errors import InvalidRequest, SetupError
from sidecache.keys_file import create_key


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
