"""Measurements; each prints the command's own figures and, with --json, machine-readable ones."""

import os

# gRPC's core logs to stderr by itself, and reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
