"""The parts of the semantic quality benchmark: data, methods, and what counts as false."""
