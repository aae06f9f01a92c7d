"""The tour: what the gateway does, shown on the running model and checked on the way."""

import asyncio
import re
import secrets
from dataclasses import dataclass

from rich.text import Text

from sidecache.cli.chat import provenance
from sidecache.cli.console import harmless, out, write_raw
from sidecache.client import CacheControl, GenerationStream, SidecacheClient, Source
from sidecache.errors import SidecacheError

_MAX_TOKENS = 48
_STORE_WAIT_S = 5.0
_STORE_POLL_S = 0.05
_INDENT = "   "


@dataclass(frozen=True, slots=True)
class Step:
    """One prompt, and where its answer has to come from.

    Attributes:
        title: what the step shows.
        prompt: one user turn.
        expected: the only right source.
    """

    title: str
    prompt: str
    expected: Source


STEPS = (
    Step(
        "a prompt, generated token by token",
        "Give me 3 reasons to drink coffee before breakfast.",
        Source.ENGINE,
    ),
    Step(
        "the same prompt again: an exact hit",
        "Give me 3 reasons to drink coffee before breakfast.",
        Source.EXACT,
    ),
    Step(
        "other words, same meaning: a semantic hit",
        "Please give me 3 reasons for drinking coffee before breakfast.",
        Source.SEMANTIC,
    ),
    Step(
        "a look-alike with another meaning: a miss",
        "Give me 3 reasons to drink coffee after breakfast.",
        Source.ENGINE,
    ),
    Step(
        "a negated look-alike: a miss",
        "Give me 3 reasons not to drink coffee before breakfast.",
        Source.ENGINE,
    ),
    Step(
        "a look-alike with another number: a miss",
        "Give me 5 reasons to drink coffee before breakfast.",
        Source.ENGINE,
    ),
)


async def take_tour(client: SidecacheClient) -> bool:
    """Walk through :data:`STEPS`; whether each answer came from where it should.

    Args:
        client: open, with a key that has admin rights (to see that an answer is
            stored before it is asked for again).
    """
    namespace = f"tour-{secrets.token_hex(4)}"
    out.print(
        f"\n[bold]A short tour.[/bold] [dim]Its cache namespace {namespace} is new, so every tour "
        "tells the same story.[/dim]\n"
    )
    unmet = 0
    for number, step in enumerate(STEPS, 1):
        out.print(f"[bold]{number}. {step.title}[/bold]")
        out.print(Text.assemble(("   > ", "dim"), step.prompt))
        try:
            source = await _take(client, step, namespace, in_full=number == 1)
            fault = "" if source is step.expected else f"got {source.name}"
        except SidecacheError as error:
            fault = f"got an error: {error}"
        if fault:
            unmet += 1
            out.print(Text(f"{_INDENT}expected {step.expected.name}, {fault}", style="bold red"))
        out.print()
    if unmet:
        out.print(
            f"[bold red]{unmet} of {len(STEPS)} steps did not go as they should.[/bold red] "
            "`sidecache cache stats` and the logs say more.\n"
        )
    else:
        out.print(f"[green]All {len(STEPS)} answers came from where they should.[/green]\n")
    return unmet == 0


async def _take(client: SidecacheClient, step: Step, namespace: str, *, in_full: bool) -> Source:
    """Ask one prompt, show its answer, and wait until it is stored."""
    stored_before = await _stored(client)
    async with client.generate(
        step.prompt, max_tokens=_MAX_TOKENS, cache=CacheControl(namespace=namespace)
    ) as stream:
        if in_full:
            await _show_growing(stream)
        else:
            text = " ".join("".join([piece async for piece in stream.text()]).split())
            out.print(
                Text(_INDENT + harmless(text), style="dim"),
                overflow="ellipsis",
                no_wrap=True,
                soft_wrap=False,
            )
        out.print(Text.assemble(_INDENT, provenance(stream)))
        source = Source(stream.started.source) if stream.started else Source.UNSPECIFIED
    if source is Source.ENGINE:
        await _wait_stored(client, stored_before)
    return source


async def _show_growing(stream: GenerationStream) -> None:
    """Write an answer as it is made, wrapped between words and indented."""
    column = 0
    async for piece in stream.text():
        for part in re.findall(r"\n|\s*[^\s]*", piece):
            if part == "\n" or column + len(part) > out.width - len(_INDENT):
                write_raw("\n")
                column = 0
            word = part.strip("\n") if column else part.lstrip()
            if word:
                write_raw(word if column else _INDENT + word)
                column += len(word)
    write_raw("\n")


async def _stored(client: SidecacheClient) -> int:
    return (await client.cache_stats()).stats.stored


async def _wait_stored(client: SidecacheClient, before: int) -> None:
    """Answers are stored in the background: wait, with a bound, before the next question."""
    try:
        async with asyncio.timeout(_STORE_WAIT_S):
            while await _stored(client) <= before:  # noqa: ASYNC110  another process's state
                await asyncio.sleep(_STORE_POLL_S)
    except TimeoutError:
        out.print(f"   [red]this answer was not stored within {_STORE_WAIT_S:g} s[/red]")
