"""These tests need the extra [sentence-transformers] and run by a target of their own."""

import importlib.util
from pathlib import Path

HAS_EXTRA = importlib.util.find_spec("sentence_transformers") is not None

# The default suite runs without torch; nothing here is even imported then.
collect_ignore_glob = [] if HAS_EXTRA else [str(Path(__file__).parent / "test_*.py")]
