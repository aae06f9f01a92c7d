"""`sidecache chat`: a conversation in the terminal, or one prompt a line from a pipe."""

import asyncio
import contextlib
import sys
from typing import Annotated

import typer
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
from sidecache.cli.console import complain, exit_code, milliseconds, out, source_text, write_raw
from sidecache.client import (
    ChatMessage,
    GenerationStream,
    PrefixRetention,
    SidecacheClient,
    Source,
)
from sidecache.errors import InvalidRequest, PromptTooLong, SidecacheError
from sidecache.generate_request import GenerateOptions


def chat(
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="Empty: the router's default.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: greedy.")] = 0.0,
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    pin: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="Ask engines that can to keep the system prompt, or without one each turn; "
            "100 is the longest. Your key says how much you may ask for.",
        ),
    ] = None,
    keep_s: Annotated[float | None, typer.Option("--keep", help="Seconds, with --pin.")] = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    api_key: ApiKey = None,
) -> None:
    """Talk to the model. Ctrl-C stops an answer, Ctrl-D ends, /new begins afresh."""
    client = make_client(
        address, api_key=api_key, api_key_file=api_key_file, ca_file=ca_file, plaintext=plaintext
    )
    options: GenerateOptions = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if pin is not None:
        options["retention"] = _retention(pin, keep_s, leading_messages=1 if system else 0)
    elif keep_s is not None:
        raise InvalidRequest("--keep needs a --pin", field="keep")
    with asyncio.Runner() as runner:
        runner.run(client.__aenter__())
        try:
            runner.run(_greet(client))
            code = Conversation(client, options, system).hold(runner)
        finally:
            runner.run(client.aclose())
    raise typer.Exit(code)


def _retention(priority: int, keep_s: float | None, leading_messages: int) -> PrefixRetention:
    retention = PrefixRetention(priority=priority, leading_messages=leading_messages)
    if keep_s is not None:
        retention.duration.FromNanoseconds(round(keep_s * 1e9))
    return retention


async def _greet(client: SidecacheClient) -> None:
    """Fail before the first question where nobody answers."""
    try:
        await client.health()
    except SidecacheError as error:
        raise explain(error, client.address) from error


class Conversation:
    """Turns taken in one chat; the whole history goes with each request.

    Args:
        client: open.
        options: of every generation.
        system: the system prompt; empty for none.
    """

    def __init__(self, client: SidecacheClient, options: GenerateOptions, system: str) -> None:
        self._client = client
        self._options = options
        self._opening = [ChatMessage(role="system", content=system)] if system else []
        self._history = list(self._opening)

    def hold(self, runner: asyncio.Runner) -> int:
        """Talk until the input ends; the exit code is that of the last error in a pipe."""
        interactive = sys.stdin.isatty()
        if interactive:
            # Gives input() line editing and a history where the system has it.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401, PLC0415
            out.print(f"Talking to {self._client.address}. Ctrl-D ends, /new begins afresh.\n")
        code = 0
        while (line := self._next_line(interactive=interactive)) is not None:
            match line.strip():
                case "":
                    pass
                case "/new":
                    self._history = list(self._opening)
                case turn:
                    code = self._take_turn(turn, runner) or code
        return 0 if interactive else code

    @staticmethod
    def _next_line(*, interactive: bool) -> str | None:
        """What the user says next; None at the end of the input."""
        if not interactive:
            return sys.stdin.readline() or None
        while True:
            try:
                return input("you > ")
            except EOFError:
                out.print()
                return None
            except KeyboardInterrupt:
                out.print("\nCtrl-D ends.")

    def _take_turn(self, turn: str, runner: asyncio.Runner) -> int:
        """Ask and show the answer; a turn that failed is forgotten. The exit code."""
        question = ChatMessage(role="user", content=turn)
        try:
            answer = runner.run(self._answer([*self._history, question]))
        except KeyboardInterrupt:
            out.print("\n[dim]cancelled[/dim]\n")
            return 0
        except PromptTooLong as error:
            out.print()
            complain(f"{error}; /new begins afresh")
            return exit_code(error)
        except SidecacheError as error:
            out.print()
            complain(str(explain(error, self._client.address)))
            return exit_code(error)
        self._history += [question, ChatMessage(role="assistant", content=answer)]
        return 0

    async def _answer(self, messages: list[ChatMessage]) -> str:
        pieces = []
        async with self._client.generate(messages, **self._options) as stream:
            async for piece in stream.text():
                write_raw(piece)
                pieces.append(piece)
            out.print()
            out.print(provenance(stream))
            out.print()
        return "".join(pieces)


def provenance(stream: GenerationStream) -> Text:
    """Source, time to first token, tokens, worker and trace of a stream that ended."""
    started = stream.started
    source = Source(started.source) if started else Source.UNSPECIFIED
    line = Text.assemble(
        source_text(source),
        (f"  first token {milliseconds(stream.ttft_s)}  {stream.num_tokens:3} tokens", "dim"),
    )
    if started and started.trace_id:
        line.append(f"  trace {started.trace_id}", style="dim")
    return line
