"""The learned pair verifier: its data, its training, its evaluation."""
