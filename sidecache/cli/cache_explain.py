"""`sidecache cache explain`: why a prompt hits or misses."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import duration_pb2, json_format
from rich.console import Group, RenderableType
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
from sidecache.cli.console import harmless, out
from sidecache.client import CacheControl, ChatMessage, SidecacheClient
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.generate_request import GenerateOptions, build_request
from sidecache.v1 import admin_pb2, cache_pb2
from sidecache.v1 import inference_pb2 as pb

_TIERS = {cache_pb2.TIER_EXACT: "exact", cache_pb2.TIER_SEMANTIC: "semantic"}
_MISSES = {
    cache_pb2.MISS_REASON_ABSENT: "nothing near is stored in this scope",
    cache_pb2.MISS_REASON_BELOW_THRESHOLD: "the nearest answer is not near enough",
    cache_pb2.MISS_REASON_REJECTED: "a near answer is for another meaning",
    cache_pb2.MISS_REASON_STALE: "the stored answer is older than max_age",
    cache_pb2.MISS_REASON_NOT_COMPARABLE: "not stored, and not comparable by meaning",
    cache_pb2.MISS_REASON_DEGRADED: "the semantic tier could not answer",
    cache_pb2.MISS_REASON_EXPLORED: "a near answer is too uncertain for the bound on false hits",
}
_DIGITS = 12


def explain_prompt(
    prompt: Annotated[str, typer.Argument(help="The user's turn.")] = "",
    request_file: Annotated[
        Path | None,
        typer.Option(
            "--request",
            help="A whole GenerateRequest as JSON, instead of a prompt and what goes with it: "
            "for histories and tools.",
        ),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Who would ask; without it, your own tenant.")] = "",
    model: Annotated[str, typer.Option(help="Without it, the router's default.")] = "",
    system: Annotated[str, typer.Option(help="The system prompt.")] = "",
    namespace: Annotated[str, typer.Option(help="The part of the tenant's cache.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(help="As the request has it: it is part of the key.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Part of the key, too.")] = 0.0,
    min_similarity: Annotated[float | None, typer.Option(help="Raises the floor.")] = None,
    max_age_s: Annotated[float | None, typer.Option("--max-age", help="In seconds.")] = None,
    address: Address = DEFAULT_ADDRESS,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show which tier answers a prompt, which neighbours it has, and what decided (admin key).

    Nothing is generated, served or counted.
    """
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    if bool(prompt) == (request_file is not None):
        raise InvalidRequest("give a prompt, or a whole request with --request")
    if request_file is not None:
        request = _read_request(request_file)
    else:
        messages = [ChatMessage(role="user", content=prompt)]
        if system:
            messages.insert(0, ChatMessage(role="system", content=system))
        options = GenerateOptions(
            model=model,
            temperature=temperature,
            cache=_control(namespace, min_similarity, max_age_s),
        )
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        request = build_request(messages, options)
    response = asyncio.run(_fetch(client, request, tenant))
    if as_json:
        print(json_format.MessageToJson(response, always_print_fields_with_no_presence=True))
    else:
        out.print(explanation(response))


def explanation(response: admin_pb2.ExplainCacheResponse) -> RenderableType:
    """What the router and its sidecar said, for people."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("tenant", Text(response.tenant))
    facts.add_row("outcome", _outcome(response))
    if response.HasField("key"):
        facts.add_row("scope", response.key.scope.hex()[:_DIGITS])
        facts.add_row("exact key", response.key.exact.hex()[:_DIGITS])
    if response.not_compared:
        facts.add_row("not compared", Text(harmless(response.not_compared)))
    elif response.HasField("explained"):
        facts.add_row("floor", f"{response.explained.threshold:.3f}")
    if response.not_stored:
        facts.add_row("not stored", Text(response.not_stored))
    if not response.explained.candidates:
        return facts
    return Group(facts, Text(), _neighbours(response.explained))


def _outcome(response: admin_pb2.ExplainCacheResponse) -> Text:
    if not response.HasField("explained"):
        return Text(f"the cache is not asked: {response.not_asked}", style="yellow")
    outcome = response.explained.outcome
    if outcome.HasField("hit"):
        hit = outcome.hit
        age_s = hit.age.ToNanoseconds() / 1e9
        return Text.assemble(
            (f"{_TIERS.get(hit.tier, 'unknown')} hit", "bold green"),
            f" on {hit.entry_id}, stored {age_s:,.0f} s ago",
        )
    return Text.assemble(("miss", "bold yellow"), f": {_why_missed(outcome.miss.reason)}")


def _why_missed(reason: "cache_pb2.MissReason.ValueType") -> str:
    if reason in _MISSES:
        return _MISSES[reason]
    # An open enum: a newer router may send a number that has no name here.
    known = reason in cache_pb2.MissReason.values()
    return cache_pb2.MissReason.Name(reason) if known else f"reason {reason}"


def _neighbours(explained: cache_pb2.ExplainResponse) -> Table:
    table = Table(title="Neighbours, nearest first", title_justify="left")
    for name in ("entry", "similarity", "", "what decided"):
        table.add_column(name, overflow="fold")
    for candidate in explained.candidates:
        verdict = Text("served", "green") if candidate.accepted else Text("refused", "yellow")
        table.add_row(
            candidate.entry_id,
            f"{candidate.similarity:.3f}",
            verdict,
            Text(harmless(candidate.verdict)),
        )
    return table


def _control(namespace: str, min_similarity: float | None, max_age_s: float | None) -> CacheControl:
    control = CacheControl(namespace=namespace, min_similarity=min_similarity)
    if max_age_s is not None:
        age = duration_pb2.Duration()
        age.FromNanoseconds(round(max_age_s * 1e9))
        control.max_age.CopyFrom(age)
    return control


def _read_request(path: Path) -> pb.GenerateRequest:
    try:
        return json_format.Parse(path.read_text(), pb.GenerateRequest())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}", field="request") from error
    except json_format.ParseError as error:
        raise InvalidRequest(f"{path} is no GenerateRequest: {error}", field="request") from error


async def _fetch(
    client: SidecacheClient, request: pb.GenerateRequest, tenant: str
) -> admin_pb2.ExplainCacheResponse:
    try:
        async with client:
            return await client.explain_cache_request(request, tenant=tenant)
    except SidecacheError as error:
        raise explain(error, client.address) from error
