"""`sidecache splits`: what stands behind public model names, and how each variant does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from sidecache.cli.connection import (
    DEFAULT_ADDRESS,
    Address,
    ApiKey,
    ApiKeyFile,
    CaFile,
    Plaintext,
    explain,
    make_client,
)
from sidecache.cli.console import out
from sidecache.client import SidecacheClient
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.v1 import admin_pb2 as pb

T = TypeVar("T")

app = typer.Typer(help="Weighted variants, canaries and shadows.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.callback()
def splits() -> None:
    """Weighted variants, canaries and shadows."""


@app.command("list")
def list_splits(
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Show every split with each variant's figures and their 95 % confidence intervals."""
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    found = asyncio.run(_ask(client, client.splits))
    if as_json:
        print(_json(pb.ListSplitsResponse(splits=found)))
        return
    if not found:
        out.print("no splits; [[splits]] in the router's configuration makes one")
    for split in found:
        out.print(split_table(split))


@app.command("set")
def set_weights(
    model: Annotated[str, typer.Argument(help="The split's public name.")],
    weights: Annotated[list[str], typer.Argument(help="VARIANT=WEIGHT, one or more.")],
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Change the weights of variants until the split's configuration changes."""
    wanted = dict(_parse(weight) for weight in weights)
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    split = asyncio.run(_ask(client, lambda: client.set_split_weights(model, wanted)))
    out.print(_json(split) if as_json else split_table(split))


@app.command("reset")
def reset(
    model: Annotated[str, typer.Argument(help="The split's public name.")],
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Take the configured weights again, end a rollback, and begin the figures anew."""
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    split = asyncio.run(_ask(client, lambda: client.reset_split(model)))
    out.print(_json(split) if as_json else split_table(split))


def split_table(split: pb.Split) -> Table:
    """One split for people."""
    title = f"{split.model}  (sticky by {split.sticky}{', falls back' * split.fall_back})"
    table = Table(title=title, title_justify="left")
    for column in ("variant", "share", "workers", "requests", "cached"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for column in ("errors %", "first token ms", "tokens/s"):
        table.add_column(f"{column} (95 %)", justify="right")
    for variant in split.variants:
        table.add_row(
            Text(_called(variant)),
            f"{100 * variant.share:.1f} %",
            "ready" if variant.ready else "none",
            f"{variant.succeeded + variant.failed:,}",
            f"{variant.cached:,}",
            _shown(variant.error_rate, 100, 2),
            _shown(variant.first_token_s, 1000, 1),
            _shown(variant.tokens_per_s, 1, 1),
        )
    why = [f"{v.variant} was rolled back: {v.rolled_back}" for v in split.variants if v.rolled_back]
    table.caption = "; ".join(why)
    return table


def _called(variant: pb.SplitVariant) -> str:
    role = pb.SplitRole.Name(variant.role).removeprefix("SPLIT_ROLE_").lower()
    if variant.role in (pb.SPLIT_ROLE_CANARY, pb.SPLIT_ROLE_BASELINE):
        return f"{variant.variant} ({role})"
    return variant.variant


def _shown(figure: pb.Estimate, scale: float, digits: int) -> str:
    if not figure.count:
        return "-"
    value = f"{figure.value * scale:,.{digits}f}"
    if not figure.HasField("low"):
        return value
    low, high = figure.low * scale, figure.high * scale
    return f"{value} [{low:,.{digits}f}, {high:,.{digits}f}]"


def _parse(weight: str) -> tuple[str, float]:
    variant, equals, number = weight.rpartition("=")
    try:
        if variant and equals:
            return variant, float(number)
    except ValueError:
        pass
    raise InvalidRequest(f"{weight!r}; give VARIANT=WEIGHT, e.g. v2=5", field="weights")


def _json(message: Message) -> str:
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True)


async def _ask(client: SidecacheClient, call: Callable[[], Awaitable[T]]) -> T:
    try:
        async with client:
            return await call()
    except SidecacheError as error:
        raise explain(error, client.address) from error
