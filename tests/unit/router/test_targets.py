"""Worker targets."""

import socket
from pathlib import Path

import pytest

from router.targets import check_target, resolve
from sidecache.errors import SetupError


@pytest.mark.parametrize(
    "target", ["127.0.0.1:7071", "[::1]:7071", "unix:/run/w.sock", "dns:workers:7071"]
)
def test_targets_that_can_be(target: str) -> None:
    """Every documented form is accepted as it stands."""
    assert check_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        *("", "host", "host:", "host:0", "host:70000", ":7071", "unix:"),
        # To a resolver they are a bug of its caller's, which ended the watch over all workers.
        *("dns:a..b:7071", f"dns:{'a' * 64}.net:7071"),
    ],
)
def test_targets_that_cannot_be(target: str) -> None:
    """Anything else is refused at start, by name."""
    with pytest.raises(SetupError, match="may be host:port"):
        check_target(target)


@pytest.mark.parametrize(
    ("content", "addresses"),
    [
        ("# nobody today\n", set()),
        ("127.0.0.1:7071\n", {"127.0.0.1:7071"}),
        (
            "# fleet\n\n 127.0.0.1:7071 # left\nunix:/run/w.sock\n",
            {"127.0.0.1:7071", "unix:/run/w.sock"},
        ),
    ],
)
async def test_a_file_lists_workers(tmp_path: Path, content: str, addresses: set[str]) -> None:
    """One address a line; comments and blank lines say nothing."""
    path = tmp_path / "workers"
    path.write_text(content)
    target = check_target(f"file:{path}")
    assert await resolve(target) == addresses


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"127.0.0.1:7071\n127.0.0.1:70", "not ended"),
        (b"127.0.0.1\n", "may be host:port"),
        (b"dns:workers:7071\n", "may be host:port"),
        (b"file:/other\n", "may be host:port"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"#" * (1 << 20) + b"\n", "over 1048576 bytes"),
    ],
)
async def test_a_bad_list_is_refused_whole(tmp_path: Path, content: bytes, why: str) -> None:
    """A torn, foreign or huge file is an error that names it, never half a fleet."""
    path = tmp_path / "workers"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=why):
        await resolve(f"file:{path}")
    with pytest.raises(SetupError, match=str(path)):
        check_target(f"file:{path}")


async def test_a_toml_file_lists_workers(tmp_path: Path) -> None:
    """A .toml has one array, and nothing that might be meant as something else."""
    path = tmp_path / "workers.toml"
    path.write_text('# fleet\nworkers = ["127.0.0.1:7071", "unix:/run/w.sock"]\n')
    assert await resolve(check_target(f"file:{path}")) == {"127.0.0.1:7071", "unix:/run/w.sock"}
    torn = ("", 'workers = ["127.0.0.1:70', "workers = 7", "worker = []", "workers = [7]")
    for content in (*torn, "workers = " + "[" * 20_000):
        path.write_text(content)
        with pytest.raises(SetupError, match=str(path)):
            await resolve(f"file:{path}")


def test_a_missing_list_is_an_error_at_start(tmp_path: Path) -> None:
    """The operator learns at once that the file he named is not there."""
    with pytest.raises(SetupError, match="No such file"):
        check_target(f"file:{tmp_path}/none")


async def test_a_name_stands_for_its_addresses() -> None:
    """A DNS target becomes one worker an address; others are themselves."""
    assert "127.0.0.1:7071" in await resolve("dns:localhost:7071")
    assert await resolve("127.0.0.1:7071") == {"127.0.0.1:7071"}
    assert await resolve("unix:/run/w.sock") == {"unix:/run/w.sock"}


async def test_an_unknown_name_is_an_os_error() -> None:
    """The pool keeps what it had when a name does not resolve."""
    with pytest.raises(socket.gaierror):
        await resolve("dns:no-such-host.invalid:7071")
