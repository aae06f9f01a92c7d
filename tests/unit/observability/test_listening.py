import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from observability.listening import is_local
from observability.settings import ServerSettings
from sidecache.errors import SetupError
from sidecache.v1 import inference_pb2 as pb
from tests.unit.observability.conftest import Service, serving


async def serve_on(**settings: Any) -> str:
    """The address served on, once a call has gone through."""
    async with serving(Service(), settings=ServerSettings(**settings)) as pair:
        await pair.stub.ListModels(pb.ListModelsRequest(), timeout=5)
        return pair.address


@pytest.mark.parametrize(
    ("listen", "dialled"),
    [("127.0.0.1:0", "127.0.0.1"), ("localhost:0", "localhost"), ("[::1]:0", "[::1]")],
)
async def test_port_zero_becomes_a_real_one(listen: str, dialled: str) -> None:
    """The address of a server can be dialled, with the port it really got."""
    host, _, port = (await serve_on(listen=listen)).rpartition(":")
    assert host == dialled
    assert int(port) > 0


async def test_a_wildcard_is_dialled_on_loopback() -> None:
    """A server on every interface names one that this host can dial."""
    address = await serve_on(listen="0.0.0.0:0", plaintext_beyond_loopback=True)
    assert address.startswith("127.0.0.1:")


async def test_a_busy_port_is_named() -> None:
    """A port in use is refused by number, even though gRPC would have shared it."""
    async with serving(Service()) as first:
        port = first.address.rpartition(":")[2]
        with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 is in use: stop"):
            await serve_on(listen=first.address)
        await first.stub.ListModels(pb.ListModelsRequest(), timeout=5)


async def test_reuse_port_shares_it() -> None:
    """With reuse_port two servers may have one port."""
    shared = ServerSettings(reuse_port=True)
    async with serving(Service(), settings=shared) as first:
        again = ServerSettings(listen=first.address, reuse_port=True)
        async with serving(Service(), settings=again) as second:
            assert first.address == second.address


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
async def test_plaintext_beyond_loopback_is_refused(listen: str) -> None:
    """An address that other hosts reach needs TLS or an explicit word."""
    with pytest.raises(SetupError, match="plaintext_beyond_loopback"):
        await serve_on(listen=listen)


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("50051", "give host:port"),
        ("127.0.0.1", "give host:port"),
        ("::1:0", "give host:port"),
        ("127.0.0.1:http", "port must be 0 to 65535"),
        ("127.0.0.1:65536", "port must be 0 to 65535"),
        ("127.0.0.1:-1", "port must be 0 to 65535"),
        ("unix:relative.sock", "absolute path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/nowhere/at/all.sock", "no directory we can write to"),
    ],
)
async def test_a_bad_address_says_what_it_may_be(listen: str, why: str) -> None:
    """Each unusable address is a SetupError that names it."""
    with pytest.raises(SetupError, match=why) as refused:
        await serve_on(listen=listen)
    assert listen.removeprefix("unix:") in refused.value.text


async def test_an_address_of_another_host_is_named() -> None:
    """An address this host does not have is refused as that, not as busy."""
    with pytest.raises(SetupError, match=r"192\.0\.2\.1 is no address of this host"):
        await serve_on(listen="192.0.2.1:0", plaintext_beyond_loopback=True)


async def test_a_unix_socket_is_private(tmp_path: Path) -> None:
    """Only the owner may connect, whatever the umask; the umask is left as it was."""
    before = os.umask(0)
    try:
        path = tmp_path / "s.sock"
        async with serving(Service(), settings=ServerSettings(listen=f"unix:{path}")) as pair:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert pair.address == f"unix:{path}"
            await pair.stub.ListModels(pb.ListModelsRequest(), timeout=5)
        assert os.umask(0) == 0
        assert not path.exists()
    finally:
        os.umask(before)


async def test_a_dead_processs_socket_is_replaced(tmp_path: Path) -> None:
    """A socket file that nobody listens on does not stop a restart."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert await serve_on(listen=f"unix:{path}") == f"unix:{path}"


async def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    """A second server on a live socket is refused, and the first goes on."""
    path = tmp_path / "s.sock"
    async with serving(Service(), settings=ServerSettings(listen=f"unix:{path}")) as first:
        with pytest.raises(SetupError, match="in use"):
            await serve_on(listen=f"unix:{path}")
        await first.stub.ListModels(pb.ListModelsRequest(), timeout=5)


async def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    """A regular file at the socket's path is somebody's data."""
    path = tmp_path / "notes.txt"
    path.write_text("keep")
    with pytest.raises(SetupError, match="another kind"):
        await serve_on(listen=f"unix:{path}")
    assert path.read_text() == "keep"


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.2:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("10.0.0.1:1", False),
        ("[2001:db8::1]:1", False),
        ("host.example:1", False),
    ],
)
def test_what_counts_as_local(listen: str, local: bool) -> None:
    """Loopback addresses and Unix sockets, and nothing that must be resolved first."""
    assert is_local(listen) is local
