"""The options by which a command finds its router, and the client they make."""

from pathlib import Path
from typing import Annotated

import typer

from sidecache.client import ClientTls, SidecacheClient
from sidecache.errors import SetupError, SidecacheError, Unavailable
from sidecache.fleet.state import DEFAULT_PORT, read_demo_key
from sidecache.transport import is_local, split_address

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"

Address = Annotated[
    str,
    typer.Option(
        "--address", "-a", envvar="SIDECACHE_ADDRESS", help="The router: host:port or unix:/path."
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with the API key. Without it: $SIDECACHE_API_KEY, else the demo key of the "
        "`sidecache up` on this machine."
    ),
]
CaFile = Annotated[Path | None, typer.Option(help="PEM authorities to trust, for TLS.")]
Plaintext = Annotated[
    bool, typer.Option("--plaintext", help="No TLS beyond this machine: trusted networks only.")
]
ApiKey = Annotated[str | None, typer.Option(envvar="SIDECACHE_API_KEY", hidden=True)]


def make_client(
    address: str,
    *,
    api_key: str | None,
    api_key_file: Path | None,
    ca_file: Path | None,
    plaintext: bool,
) -> SidecacheClient:
    """A client for what the options say; not yet open."""
    return SidecacheClient(
        address,
        api_key=_find_key(address, api_key, api_key_file),
        tls=ClientTls(ca_file=ca_file) if ca_file else None,
        allow_plaintext=plaintext,
    )


def explain(error: SidecacheError, address: str) -> SidecacheError:
    """The same error, or a plainer one where nobody answered at all."""
    if type(error) is Unavailable and error.text.startswith("failed to connect"):
        return Unavailable(
            f"nothing answers at {address}: start a gateway with `sidecache up`, or name another "
            "one with --address"
        )
    return error


def _find_key(address: str, api_key: str | None, api_key_file: Path | None) -> str | None:
    if api_key_file is not None:
        try:
            return api_key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"cannot read the API key in {api_key_file}: {error}") from error
    if api_key:
        return api_key
    # The demo key opens the fleet on this machine, and is shown to nobody else.
    port = split_address(address)[1]
    return read_demo_key(port) if is_local(address) and port is not None else None
