"""`sidecache cache purge`: stored answers out, on purpose."""

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from google.protobuf import json_format

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
from sidecache.cli.console import err, out
from sidecache.client import SidecacheClient
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.v1 import admin_pb2

Invalidate = Callable[[admin_pb2.InvalidateCacheRequest], admin_pb2.InvalidateCacheResponse]

_DECLINED = 1


def purge(
    entry: Annotated[str, typer.Option(help="One answer, by its entry id.")] = "",
    tag: Annotated[str, typer.Option(help="Answers with this tag.")] = "",
    model: Annotated[str, typer.Option(help="Answers of this model.")] = "",
    namespace: Annotated[
        str | None, typer.Option(help="Answers of this namespace; '' is the default one.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that the tenant has.")] = False,
    tenant: Annotated[str, typer.Option(help="Whose; without it, your own tenant's.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Remove a tenant's stored answers that match every given option (admin key).

    More than one entry is removed only after a question, or with --yes.
    """
    request = admin_pb2.InvalidateCacheRequest(
        tenant=tenant,
        entry_id=entry,
        tag=tag,
        model=model,
        namespace=namespace,
        all=everything,
        dry_run=dry_run,
    )
    if everything and (entry or tag or model or namespace is not None):
        raise InvalidRequest("--all removes everything; drop it or the other options", field="all")

    def invalidate(
        wanted: admin_pb2.InvalidateCacheRequest,
    ) -> admin_pb2.InvalidateCacheResponse:
        client = make_client(
            address,
            api_key=api_key,
            api_key_file=api_key_file,
            ca_file=ca_file,
            plaintext=plaintext,
        )
        return asyncio.run(_invalidate(client, wanted))

    if not (dry_run or yes or entry):
        _confirm(invalidate, request)
    response = invalidate(request)
    if as_json:
        print(json_format.MessageToJson(response, always_print_fields_with_no_presence=True))
        return
    done = "would be removed" if dry_run else "removed"
    out.print(f"{_answers(response)} of tenant {response.tenant} {done}", markup=False)


def _confirm(invalidate: Invalidate, request: admin_pb2.InvalidateCacheRequest) -> None:
    """Ask the person at the terminal, who is told how many answers will go.

    Outside of any event loop, which would swallow the first Ctrl-C.
    """
    if not sys.stdin.isatty():
        raise InvalidRequest("this may remove many answers: confirm with --yes, or try --dry-run")
    trial = admin_pb2.InvalidateCacheRequest()
    trial.CopyFrom(request)
    trial.dry_run = True
    counted = invalidate(trial)
    err.print(f"{_answers(counted)} of tenant {counted.tenant} will be removed.", markup=False)
    # Not typer.confirm, which writes to stdout even when told to ask on stderr.
    err.print("Go on? [y/N] ", end="", markup=False)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise typer.Exit(_DECLINED)


async def _invalidate(
    client: SidecacheClient, request: admin_pb2.InvalidateCacheRequest
) -> admin_pb2.InvalidateCacheResponse:
    try:
        async with client:
            return await client.invalidate_cache(request)
    except SidecacheError as error:
        raise explain(error, client.address) from error


def _answers(response: admin_pb2.InvalidateCacheResponse) -> str:
    return f"{response.entries:,} answer" + ("" if response.entries == 1 else "s")
