"""`sidecache keys`: API keys of a router."""

from pathlib import Path
from typing import Annotated

import typer

from sidecache.cli.console import err, out
from sidecache.errors import InvalidRequest
from sidecache.keys_file import create_key
from sidecache.keys_limits import COUNTS, set_limits

app = typer.Typer(help="API keys of a router.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys of a router."""


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose requests and cache the key stands for.")],
    file: Annotated[Path, typer.Option(help="The router's keys file; made if need be.")],
    admin: Annotated[bool, typer.Option("--admin", help="Allow admin calls too.")] = False,
    priority_class: Annotated[
        str,
        typer.Option("--class", help="What its requests are for: interactive, standard or batch."),
    ] = "standard",
    max_priority: Annotated[
        int, typer.Option(help="Highest priority its requests may ask for, -30 to 30.")
    ] = 0,
    max_retention: Annotated[
        int, typer.Option(help="Highest priority of prefixes it may pin, to 100; 0: none.")
    ] = 0,
) -> None:
    """Print a new random key, once; the file gets its SHA-256 only."""
    key = create_key(
        file,
        tenant=tenant,
        admin=admin,
        priority_class=priority_class if priority_class != "standard" else "",
        max_priority=max_priority,
        max_retention=max_retention,
    )
    err.print(f"A new key for {tenant} is in {file} (its hash). It is shown this once:")
    out.print(key)


@app.command()
def limit(
    tenant: Annotated[str, typer.Option(help="Whose limits.")],
    file: Annotated[Path, typer.Option(help="The router's keys file.")],
    weight: Annotated[
        float | None, typer.Option(help="Its share beside other tenants, 0.001 to 1000.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Prompt and answer tokens of generated answers.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests of any kind.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Take away the limits that are not named.")
    ] = False,
) -> None:
    """Set a tenant's limits; running routers take them in by themselves, within seconds."""
    given: dict[str, float | None] = {
        "weight": weight,
        "tokens_per_minute": tokens_per_minute,
        "requests_per_minute": requests_per_minute,
        "max_in_flight": max_in_flight,
    }
    named = {name: value for name, value in given.items() if value is not None}
    if not named and not clear:
        raise InvalidRequest("name a limit, or --clear them all", field="limits")
    cleared = dict.fromkeys(("weight", *COUNTS)) if clear else {}
    set_limits(file, tenant=tenant, limits={**cleared, **named})
    err.print(f"The limits of {tenant} are in {file}.")
