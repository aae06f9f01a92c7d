"""Measurements; each prints the command's own figures and, with --json, machine-readable ones."""
