"""What the sidecar is told of a router with each lookup."""

from pathlib import Path

import pytest

from router.cache_side import _claim
from router.settings import FlightSettings

KEY_FILE = Path("mesh.key")


def test_a_router_that_others_can_read_along_at_says_where() -> None:
    """By its address; it waits for no paraphrase unless that is set."""
    claim = _claim(FlightSettings(advertise="me:1", mesh_key_file=KEY_FILE))
    assert claim
    assert (claim.router, claim.private) == ("me:1", False)
    assert not claim.awaits_paraphrase
    assert not claim.is_awaitable


@pytest.mark.parametrize(
    "settings",
    [
        FlightSettings(paraphrase_wait_s=1.0),
        FlightSettings(paraphrase_wait_s=1.0, advertise="me:1"),
        FlightSettings(paraphrase_wait_s=1.0, mesh_key_file=KEY_FILE),
    ],
)
def test_one_that_only_waits_for_paraphrases_is_private(settings: FlightSettings) -> None:
    """Else others would be sent to it in vain; its name is no address, and no other's."""
    claim, other = _claim(settings), _claim(settings)
    assert claim
    assert other
    assert claim.private
    assert claim.awaits_paraphrase
    assert claim.router.startswith("private-")
    assert claim.router != other.router


@pytest.mark.parametrize(
    "settings",
    [
        FlightSettings(),
        FlightSettings(advertise="me:1"),
        FlightSettings(mesh_key_file=KEY_FILE),
    ],
)
def test_half_a_setting_shares_nothing(settings: FlightSettings) -> None:
    """Without an address nobody finds it, without a key nobody is let in."""
    assert _claim(settings) is None
