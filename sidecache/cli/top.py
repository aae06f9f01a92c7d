"""`sidecache top`: what runs, what waits and who is refused, now."""

import asyncio
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Group
from rich.live import Live
from rich.table import Table

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
from sidecache.cli.top_workers import EventRates, workers_table
from sidecache.client import SidecacheClient
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.v1 import admin_pb2


def top(
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    every_s: Annotated[
        float | None, typer.Option("--every", help="Show it again after so many seconds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs; once.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show models' load and queues, workers' KV caches, and tenants' use (admin key)."""
    if every_s is not None and not 0.1 <= every_s <= 3600:  # noqa: PLR2004  an hour
        raise InvalidRequest(f"{every_s:g}; may be 0.1 to 3600 seconds", field="every")
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    asyncio.run(_show(client, every_s, as_json=as_json))


async def _show(client: SidecacheClient, every_s: float | None, *, as_json: bool) -> None:
    try:
        async with client:
            if as_json:
                answer = await client.scale_signal()
                print(json_format.MessageToJson(answer, always_print_fields_with_no_presence=True))
                return
            rates = EventRates()
            shown = await _look(client, rates)
            if every_s is None:
                out.print(shown)
            else:
                with Live(shown, console=out) as live:
                    while True:
                        await asyncio.sleep(every_s)
                        live.update(await _look(client, rates))
    except SidecacheError as error:
        raise explain(error, client.address) from error


async def _look(client: SidecacheClient, rates: EventRates) -> Group:
    answer, workers, cache = await asyncio.gather(
        client.scale_signal(), client.workers(), client.cache_stats()
    )
    followed = cache.stats.prefix_followed
    return tables(answer, workers_table(workers, followed, rates.look(followed)))


def tables(answer: admin_pb2.GetScaleSignalResponse, workers: Table) -> Group:
    """The answer for people."""
    models = Table(title="Models", title_justify="left")
    for name in ("model", "workers", "desired", "running", "waiting", "tokens", "wait", "refused"):
        models.add_column(name, justify="left" if name == "model" else "right")
    for each in answer.signals:
        models.add_row(
            each.model,
            f"{each.ready_workers}",
            f"{each.desired_workers} ({each.reason})",
            f"{each.running} of {each.slots or '?'}",
            f"{each.waiting}",
            f"{each.running_tokens:,} + {each.waiting_tokens:,}",
            f"{each.backlog.ToNanoseconds() / 1e9:.1f} s",
            f"{each.refused:,}",
        )
    tenants = Table(title="Tenants", title_justify="left")
    for name in ("tenant", "in flight", "tokens left", "requests left"):
        tenants.add_column(name, justify="left" if name == "tenant" else "right")
    for use in answer.tenants:
        tokens = f"{use.tokens_left:,}" if use.HasField("tokens_left") else "-"
        requests = f"{use.requests_left:,}" if use.HasField("requests_left") else "-"
        tenants.add_row(use.tenant, f"{use.in_flight}", tokens, requests)
    return Group(models, workers, tenants) if answer.tenants else Group(models, workers)
