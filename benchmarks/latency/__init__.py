"""The parts of the semantic latency benchmark: our lookup in parts, and other caches."""
