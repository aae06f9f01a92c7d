"""Worker targets."""

import socket

import pytest

from router.targets import check_target, resolve
from sidecache.errors import SetupError


@pytest.mark.parametrize(
    "target", ["127.0.0.1:7071", "[::1]:7071", "unix:/run/w.sock", "dns:workers:7071"]
)
def test_targets_that_can_be(target: str) -> None:
    """Every documented form is accepted as it stands."""
    assert check_target(target) == target


@pytest.mark.parametrize("target", ["", "host", "host:", "host:0", "host:70000", ":7071", "unix:"])
def test_targets_that_cannot_be(target: str) -> None:
    """Anything else is refused at start, by name."""
    with pytest.raises(SetupError, match="may be host:port"):
        check_target(target)


async def test_a_name_stands_for_its_addresses() -> None:
    """A DNS target becomes one worker an address; others are themselves."""
    assert "127.0.0.1:7071" in await resolve("dns:localhost:7071")
    assert await resolve("127.0.0.1:7071") == {"127.0.0.1:7071"}
    assert await resolve("unix:/run/w.sock") == {"unix:/run/w.sock"}


async def test_an_unknown_name_is_an_os_error() -> None:
    """The pool keeps what it had when a name does not resolve."""
    with pytest.raises(socket.gaierror):
        await resolve("dns:no-such-host.invalid:7071")
