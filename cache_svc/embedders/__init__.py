"""Implementations of the Embedder protocol, one a file."""
