"""Answers that outlive the process: a SQLite database behind the answers in memory."""
