"""What to do with a gateway that is up."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from sidecache.cli.connection import DEFAULT_ADDRESS
from sidecache.cli.console import out


def show_next_steps(address: str, api_key: str, folder: Path) -> None:
    """Print the ways to talk to the router: CLI, Python, grpcurl."""
    command = _own_name() + " chat" + ("" if address == DEFAULT_ADDRESS else f" -a {address}")
    out.print(f"[bold green]Sidecache is serving on {address}[/bold green]  (Ctrl-C stops it)\n")
    for title, text in (
        ("chat", command),
        ("demo key", api_key),
        ("logs", str(folder)),
        ("Python", _python(address, api_key)),
        ("grpcurl", _grpcurl(address, api_key)),
    ):
        first, *rest = text.splitlines()
        out.print(f"  [bold]{title:<9}[/bold] ", end="")
        out.print(first, markup=False)
        for line in rest:
            out.print(" " * 12 + line, markup=False)
    out.print()


def _own_name() -> str:
    """How this shell would call this very program."""
    program = Path(sys.argv[0])
    if program.name != "sidecache":
        return "python -m sidecache"
    found = shutil.which("sidecache")
    if found and Path(found).samefile(program):
        return "sidecache"
    return shlex.quote(os.path.relpath(program))


def _python(address: str, api_key: str) -> str:
    return f"""\
# in `python -m asyncio`, or in an async function
from sidecache.client import SidecacheClient
key = "{api_key}"
async with SidecacheClient("{address}", api_key=key) as client:
    async with client.generate("Why is the sky blue?") as stream:
        async for piece in stream.text():
            print(piece, end="", flush=True)"""


def _grpcurl(address: str, api_key: str) -> str:
    body = '{"chat": {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}}'
    return f"""\
grpcurl -plaintext -H 'authorization: Bearer {api_key}' \\
  -d '{body}' \\
  {address} sidecache.v1.InferenceService/Generate"""
