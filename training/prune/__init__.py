"""Structured pruning of a GGUF model: whole layers, least needed first, and other weight types."""
