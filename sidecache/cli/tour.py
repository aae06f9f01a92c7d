"""The tour: what the gateway does, shown on the running model and checked on the way."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from sidecache.cli.chat import provenance
from sidecache.cli.console import out, write_raw
from sidecache.client import CacheControl, SidecacheClient, Source

_MAX_TOKENS = 48
_STORE_WAIT_S = 5.0
_STORE_POLL_S = 0.05


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
        source = await _take(client, step, namespace)
        if source is not step.expected:
            unmet += 1
            out.print(f"   [bold red]expected {step.expected.name}, got {source.name}[/bold red]")
        out.print()
    if unmet:
        out.print(
            f"[bold red]{unmet} of {len(STEPS)} steps did not go as they should.[/bold red] "
            "`sidecache cache stats` and the logs say more.\n"
        )
    else:
        out.print(f"[green]All {len(STEPS)} answers came from where they should.[/green]\n")
    return unmet == 0


async def _take(client: SidecacheClient, step: Step, namespace: str) -> Source:
    """Ask one prompt, show its answer as it comes, and wait until it is stored."""
    stored_before = await _stored(client)
    async with client.generate(
        step.prompt, max_tokens=_MAX_TOKENS, cache=CacheControl(namespace=namespace)
    ) as stream:
        indent = _indented(write_raw)
        async for piece in stream.text():
            indent(piece)
        write_raw("\n")
        out.print(Text.assemble("   ", provenance(stream)))
        source = Source(stream.started.source) if stream.started else Source.UNSPECIFIED
    if source is Source.ENGINE:
        await _wait_stored(client, stored_before)
    return source


def _indented(write: Callable[[str], None]) -> Callable[[str], None]:
    """Write pieces of one text below its prompt, each line indented."""
    first = True

    def indent(piece: str) -> None:
        nonlocal first
        write(("   " if first else "") + piece.replace("\n", "\n   "))
        first = False

    return indent


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
