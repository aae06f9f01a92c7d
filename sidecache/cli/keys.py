"""`sidecache keys`: API keys of a router."""

from pathlib import Path
from typing import Annotated

import typer

from sidecache.cli.console import err, out
from sidecache.keys_file import create_key

app = typer.Typer(help="API keys of a router.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys of a router."""


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose requests and cache the key stands for.")],
    file: Annotated[Path, typer.Option(help="The router's keys file; made if need be.")],
    admin: Annotated[bool, typer.Option("--admin", help="Allow admin calls too.")] = False,
) -> None:
    """Print a new random key, once; the file gets its SHA-256 only."""
    key = create_key(file, tenant=tenant, admin=admin)
    err.print(f"A new key for {tenant} is in {file} (its hash). It is shown this once:")
    out.print(key)
