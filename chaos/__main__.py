"""``python -m chaos list | show NAME | run NAME... | run --all``."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chaos.experiments import EXPERIMENTS
from chaos.journal import Journal
from chaos.runner import run

# As a shell writes the end by SIGINT.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when every experiment passed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    match options.command:
        case "list":
            for experiment in EXPERIMENTS.values():
                _say(f"{experiment.name:18} {experiment.title}")
            return 0
        case "show":
            _say(json.dumps(EXPERIMENTS[options.name].to_json(), indent=2))
            return 0
        case _:
            names = list(EXPERIMENTS) if options.all else options.names
            unknown = [name for name in names if name not in EXPERIMENTS]
            if unknown or not names:
                wrong = f"no experiment {unknown[0]!r}" if unknown else "name some, or say --all"
                parser.error(f"{wrong}; there are: {', '.join(EXPERIMENTS)}")
            try:
                journals = asyncio.run(_run(names, with_control=not options.no_control))
            except KeyboardInterrupt:
                sys.stderr.write("interrupted; faults are rolled back and services ended\n")
                return _INTERRUPTED
            _report(journals, options.json)
            return 0 if all(journal.passed for journal in journals) else 1


async def _run(names: Sequence[str], *, with_control: bool) -> list[Journal]:
    journals = []
    for name in names:
        journal = await run(EXPERIMENTS[name], with_control=with_control)
        sys.stderr.write(journal.summary() + "\n")
        journals.append(journal)
    return journals


def _report(journals: Sequence[Journal], where: str | None) -> None:
    if where is None:
        return
    text = json.dumps([journal.to_json() for journal in journals], indent=2)
    if where == "-":
        _say(text)
    else:
        Path(where).write_text(text + "\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Faults on real services, and what must hold."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name every experiment")
    show = commands.add_parser("show", help="write one in the Chaos Toolkit's schema")
    show.add_argument("name", choices=EXPERIMENTS)
    play = commands.add_parser("run", help="run some, each with its negative control")
    play.add_argument("names", nargs="*", metavar="NAME", help="as list names them")
    play.add_argument("--all", action="store_true", help="every experiment")
    play.add_argument("--json", metavar="FILE", help="write the journals there; - for stdout")
    play.add_argument("--no-control", action="store_true", help="without the negative controls")
    return parser


if __name__ == "__main__":
    sys.exit(main())
