"""Generates sidecache/v1 from protos/: messages, services and their type stubs.

Run by ``make protos``; ``--check`` compares instead of writing and fails when
the checked-in stubs are stale.

One patch is applied to the generated stubs. mypy-protobuf types a streaming
servicer method as a plain ``def`` returning an iterator; our handlers are
coroutines that ``await context.write(...)`` (a generator handler is closed from
another task, which breaks its TaskGroup and its current span). gRPC accepts
both, so the stub is widened to accept both.
"""

import argparse
import importlib.resources
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = Path("sidecache/v1")

STREAM_RETURN = re.compile(
    r"-> _typing\.Union\[(_abc\.Iterator\[[\w.]+\]), (_abc\.AsyncIterator\[[\w.]+\])\]:"
)
WIDENED_RETURN = r"-> _typing.Union[\1, \2, _typing.Awaitable[None]]:"


def generate(out: Path) -> None:
    """Write all stubs below ``out``."""
    include = importlib.resources.files("grpc_tools") / "_proto"
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    subprocess.run(  # noqa: S603 - our own interpreter and arguments
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTOS}",
            f"-I{include}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out={out}",
            f"--mypy_grpc_out={out}",
            *sources,
        ],
        check=True,
        cwd=PROTOS,
        # protoc finds its plugins beside the interpreter that runs this.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stderr=subprocess.DEVNULL,
    )
    for stub in (out / STUBS).glob("*_pb2_grpc.pyi"):
        stub.write_text(STREAM_RETURN.sub(WIDENED_RETURN, stub.read_text()))
    (out / STUBS / "__init__.py").write_text(
        '"""Generated from protos/sidecache/v1 by `make protos`; do not edit."""\n'
    )


def main() -> int:
    """Generate in place, or with ``--check`` only compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the stubs are stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.name: p.read_bytes() for p in (Path(scratch) / STUBS).iterdir()}
    kept = {p.name: p.read_bytes() for p in (ROOT / STUBS).iterdir() if p.is_file()}
    stale = sorted(n for n in fresh.keys() | kept.keys() if fresh.get(n) != kept.get(n))
    if stale:
        print(f"stale stubs in {STUBS}: {', '.join(stale)}; run `make protos`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
