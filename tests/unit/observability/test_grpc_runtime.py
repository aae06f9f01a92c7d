"""Services choose gRPC's way of waiting before it is loaded, since later it is too late."""

import os
import subprocess
import sys

import pytest

ASK = """
import os, runpy, sys
class Ask:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Ask())
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("service", ["router", "cache_svc", "inference_svc"])
@pytest.mark.parametrize("set_before", [None, "something_else"])
def test_it_is_chosen_before_grpc_is_loaded(service: str, set_before: str | None) -> None:
    """What an operator has set stays."""
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_EXPERIMENTS"}
    if set_before:
        environment["GRPC_EXPERIMENTS"] = set_before
    told = subprocess.run(
        [sys.executable, "-c", ASK, service],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout.strip() == (set_before or "-event_engine_poller_for_python")
