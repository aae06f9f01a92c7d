"""The bound an operator sets on false semantic hits: pure, deterministic, bounded."""
