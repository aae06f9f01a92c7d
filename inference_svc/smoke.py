"""``python -m inference_svc.smoke``: does a real engine keep the contract, on this machine?

    python -m inference_svc.smoke --engine tensorrt_llm --model /models/llama-8b

For every point one line: pass, FAIL with the reason, or skipped with the reason. Any
setting of a worker may follow as a flag, as for ``python -m inference_svc``. The exit
status is 1 if a point failed, 2 if the engine could not be loaded.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from inference_svc.engine import Engine
from inference_svc.serve import make_engine
from inference_svc.settings import WorkerSettings
from inference_svc.smoke_points import POINTS, Skipped, Trial
from observability.configuration import BadConfiguration, load
from sidecache.errors import SidecacheError

_NO_ENGINE = 2
_POINT_LIMIT_S = 300.0


async def smoke(engine: Engine, adapter: str = "") -> int:
    """Try every point; how many failed."""
    trial = Trial(engine, adapter)
    engine.listen_kv(trial.holder)
    began = time.perf_counter()
    await engine.load()
    _say("pass", "load", f"{time.perf_counter() - began:.1f} s, {engine.facts.build}")
    failed = 0
    for name, point in POINTS.items():
        try:
            async with asyncio.timeout(_POINT_LIMIT_S):
                _say("pass", name, await point(trial))
        except Skipped as reason:
            _say("skipped", name, str(reason))
        except Exception as error:  # noqa: BLE001 - whatever it is, the point failed
            failed += 1
            _say("FAIL", name, f"{type(error).__name__}: {error}")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="inference_svc.smoke",
        description=__doc__,
        add_help=True,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="what model_path is set to")
    parser.add_argument("--adapter", default="", help="a LoRA adapter among the settings")
    chosen, flags = parser.parse_known_args(arguments)
    if chosen.model:
        flags += ["--model_path", chosen.model]
    try:
        settings = load(WorkerSettings, "inference_svc.smoke", flags)
    except BadConfiguration as error:
        print("\n".join(error.lines), file=sys.stderr)  # noqa: T201 - this is its output
        return _NO_ENGINE
    return asyncio.run(_run(settings, chosen.adapter))


async def _run(settings: WorkerSettings, adapter: str) -> int:
    try:
        engine = make_engine(settings)
    except SidecacheError as error:
        _say("FAIL", "load", error.text)
        return _NO_ENGINE
    try:
        failed = await smoke(engine, adapter)
    except SidecacheError as error:
        _say("FAIL", "load", error.text)
        return _NO_ENGINE
    finally:
        await engine.aclose()
    _say("FAIL" if failed else "pass", "all", f"{failed} of {len(POINTS)} points failed")
    return 1 if failed else 0


def _say(outcome: str, point: str, text: str) -> None:
    print(f"{outcome:8} {point:24} {text}", flush=True)  # noqa: T201 - this is its output


if __name__ == "__main__":
    sys.exit(main())
