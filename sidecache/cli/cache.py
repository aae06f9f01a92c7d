"""`sidecache cache`: what the cache sidecar holds and does, why, and out with it."""

import asyncio
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.table import Table

from sidecache.cli.cache_explain import explain_prompt
from sidecache.cli.cache_purge import purge
from sidecache.cli.cache_warm import warm
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
from sidecache.errors import SidecacheError, Unavailable
from sidecache.v1 import admin_pb2, cache_pb2

app = typer.Typer(help="The cache sidecar.", no_args_is_help=True)
app.command("explain")(explain_prompt)
app.command("purge")(purge)
app.command("warm")(warm)


@app.callback()
def cache() -> None:
    """The cache sidecar."""


@app.command()
def stats(
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show what the cache holds and how often it answered (needs an admin key)."""
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    response = asyncio.run(_fetch(client))
    if as_json:
        print(json_format.MessageToJson(response, always_print_fields_with_no_presence=True))
        return
    if not response.reachable:
        raise Unavailable("the router cannot reach its cache sidecar; requests go to the workers")
    out.print(stats_table(response.stats, response.stores_dropped))


def stats_table(figures: cache_pb2.GetStatsResponse, stores_dropped: int = 0) -> Table:
    """The sidecar's figures and what the router gave up storing, for people."""
    table = Table(title="Cache sidecar", show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in (
        ("entries", f"{figures.entries:,}"),
        ("size", f"{figures.bytes / 1e6:,.2f} of {figures.max_bytes / 1e6:,.0f} MB"),
        ("vectors", f"{figures.vectors:,}"),
        ("lookups", f"{figures.lookups:,}"),
        ("exact hits", _share(figures.exact_hits, figures.lookups)),
        ("semantic hits", _share(figures.semantic_hits, figures.lookups)),
        ("misses", _share(figures.misses, figures.lookups)),
        ("look-alikes rejected", f"{figures.rejected:,}"),
        ("stored", f"{figures.stored:,}"),
        ("refused", f"{figures.refused:,}"),
        ("evicted, expired", f"{figures.evicted:,}, {figures.expired:,}"),
        ("degraded lookups", f"{figures.degraded:,}"),
        ("KV blocks known", f"{figures.prefix_blocks:,}"),
        (
            "workers followed",
            f"{figures.prefix_workers_followed:,} of {figures.prefix_workers:,}"
            f" ({figures.prefix_resyncs:,} resyncs)",
        ),
        ("lost by the disk", f"{figures.lost_answers:,}"),
        ("dropped by the router", f"{stores_dropped:,}"),
        ("embedder", figures.embedder_fingerprint[:16] or "none"),
        ("uptime", f"{figures.uptime.ToSeconds():,} s"),
    ):
        table.add_row(name, value)
    return table


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


async def _fetch(client: SidecacheClient) -> admin_pb2.GetCacheStatsResponse:
    try:
        async with client:
            return await client.cache_stats()
    except SidecacheError as error:
        raise explain(error, client.address) from error
