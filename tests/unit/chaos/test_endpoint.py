"""Addresses: read as Sidecache writes them, refused with what they may be."""

import pytest

from chaos.endpoint import Endpoint


@pytest.mark.parametrize(
    ("address", "endpoint", "written"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80), "127.0.0.1:80"),
        ("[::1]:80", Endpoint("::1", 80), "[::1]:80"),
        ("unix:/run/x", Endpoint(path="/run/x"), "unix:/run/x"),
        ("unix:///run/x", Endpoint(path="/run/x"), "unix:/run/x"),
    ],
)
def test_reads_and_writes_addresses(address: str, endpoint: Endpoint, written: str) -> None:
    """Every form in use is understood, and written one way."""
    assert Endpoint.parse(address) == endpoint
    assert str(endpoint) == written


@pytest.mark.parametrize(
    "address", ["", "host", ":80", "host:", "host:http", "host:99999", "unix:"]
)
def test_refuses_what_is_no_address(address: str) -> None:
    """The error repeats the address and says what it may be."""
    with pytest.raises(ValueError, match=r"address was .* unix:/path"):
        Endpoint.parse(address)
