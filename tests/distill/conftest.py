"""These tests need torch and run by make test-sentence-transformers."""

import importlib.util
from pathlib import Path

HAS_TORCH = importlib.util.find_spec("torch") is not None

# The default suite runs without torch; nothing here is even imported then.
collect_ignore_glob = [] if HAS_TORCH else [str(Path(__file__).parent / "test_*.py")]
