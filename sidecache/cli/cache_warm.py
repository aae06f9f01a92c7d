"""`sidecache cache warm`: a long prompt into the workers' KV caches before anybody asks."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
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
from sidecache.client import SidecacheClient
from sidecache.errors import EngineFailed, InvalidRequest, SidecacheError
from sidecache.generate_request import chat_messages
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb


def warm(
    file: Annotated[
        Path,
        typer.Argument(help="A text, or JSON: a chat's messages, or an object with `messages`."),
    ],
    workers: Annotated[int, typer.Option(min=1, help="On how many workers.")] = 1,
    system: Annotated[
        bool, typer.Option("--system", help="The text is the system prompt of chats.")
    ] = False,
    priority: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Ask engines that can to keep it; 100 is the longest."),
    ] = None,
    keep_s: Annotated[
        float | None, typer.Option("--keep", help="Seconds, with --priority.")
    ] = None,
    model: Annotated[str, typer.Option(help="Without it, the router's default.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose; without it, your own tenant's.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Prefill a prompt on workers, so that requests that begin with it start fast (admin key)."""
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    request = read_prompt(file, system=system)
    request.model = model
    if priority is not None:
        request.retention.priority = priority
        if keep_s is not None:
            request.retention.duration.FromNanoseconds(int(keep_s * 1e9))
    elif keep_s is not None:
        raise InvalidRequest("--keep needs a --priority", field="keep")
    wanted = admin_pb2.WarmPrefixRequest(tenant=tenant, request=request, workers=workers)
    response = asyncio.run(_warm(client, wanted))
    if as_json:
        print(json_format.MessageToJson(response, always_print_fields_with_no_presence=True))
    else:
        out.print(warmed_table(response))
    if failed := [warmed for warmed in response.workers if warmed.error]:
        raise EngineFailed(f"not warmed on {failed[0].worker}: {failed[0].error}")


def read_prompt(file: Path, *, system: bool = False) -> pb.GenerateRequest:
    """The prompt in a file: JSON of a chat, or else a text.

    Raises:
        InvalidRequest: the file cannot be read, or is JSON of something else.
    """
    try:
        content = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}", field="file") from error
    try:
        chat = json.loads(content)
    except ValueError:
        chat = None
    request = pb.GenerateRequest()
    if isinstance(chat, dict) and "messages" in chat:
        chat = chat["messages"]
    if isinstance(chat, list) and not system:
        if not all(isinstance(message, dict) for message in chat):
            raise InvalidRequest("a chat is a list of objects with role and content", field="file")
        request.chat.messages.extend(chat_messages(chat))
    elif system:
        request.chat.messages.add(role="system", content=content)
    else:
        request.text = content
    return request


def warmed_table(response: admin_pb2.WarmPrefixResponse) -> Table:
    """What each worker did, for people."""
    table = Table(title=f"Warmed for tenant {response.tenant}", title_justify="left")
    for name in ("worker", "prompt tokens", "cached before", "cached after", "first token"):
        table.add_column(name, justify="left" if name == "worker" else "right")
    for warmed in response.workers:
        if warmed.error:
            table.add_row(warmed.worker, "-", "-", "-", "failed")
            continue
        before_s = warmed.first_token_before.ToNanoseconds() / 1e9
        before = warmed.cached_tokens_before if warmed.HasField("cached_tokens_before") else None
        after = warmed.cached_tokens_after if warmed.HasField("cached_tokens_after") else None
        after_s = warmed.first_token_after.ToNanoseconds() / 1e9
        table.add_row(
            warmed.worker,
            f"{warmed.prompt_tokens:,}",
            _cached(before, warmed),
            _cached(after, warmed),
            f"{before_s:.3f} s, then {after_s:.3f} s",
        )
    return table


def _cached(tokens: int | None, warmed: admin_pb2.WarmedWorker) -> str:
    if tokens is None:
        return "not said"
    return f"{'about ' if warmed.cached_tokens_estimated else ''}{tokens:,}"


async def _warm(
    client: SidecacheClient, wanted: admin_pb2.WarmPrefixRequest
) -> admin_pb2.WarmPrefixResponse:
    try:
        async with client:
            return await client.warm_prefix(wanted)
    except SidecacheError as error:
        raise explain(error, client.address) from error
