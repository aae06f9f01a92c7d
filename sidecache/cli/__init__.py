"""The `sidecache` command."""

import os
import sys
import traceback

# gRPC's own log lines would fall between ours; what went wrong reaches us as errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer

from sidecache.cli import cache, chat, keys, pull, splits, top, up, version
from sidecache.cli.console import complain, exit_code
from sidecache.errors import SidecacheError

_INTERRUPTED = 130
_BUG = 70

app = typer.Typer(
    name="sidecache",
    help="An LLM gateway that answers from cache when it safely can.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("up")(up.up)
app.command("chat")(chat.chat)
app.command("top")(top.top)
app.command("pull")(pull.pull)
app.command("version")(version.show_version)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.add_typer(splits.app, name="splits")


def main() -> int:
    """Run the command line; every error is one line and an exit code.

    2: bad arguments; 3: the installation; 4: credentials; 5: the server is away
    or busy; 70: a bug of ours; 130: interrupted.
    """
    try:
        app()
    except SidecacheError as error:
        complain(str(error))
        return exit_code(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last frame: a user gets a line, never a traceback
        if os.environ.get("SIDECACHE_DEBUG"):
            traceback.print_exc()
        complain(
            f"unexpected {type(error).__name__}: {error} (a bug; SIDECACHE_DEBUG=1 shows where)"
        )
        return _BUG
    except SystemExit as finished:
        code = finished.code
        return code if isinstance(code, int) else int(code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
