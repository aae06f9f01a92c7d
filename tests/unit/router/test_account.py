"""What the metrics say of how a request ended."""

import asyncio

import grpc
import pytest

from router.account import _error_type
from sidecache.errors import EngineFailed


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (EngineFailed("x"), "UNAVAILABLE"),
        (asyncio.CancelledError(), "CANCELLED"),
        (grpc.aio.InternalError("a write to a caller that is gone"), "CANCELLED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
    ids=["ours", "cancelled", "vanished", "a bug"],
)
def test_a_caller_that_vanished_is_no_bug_of_ours(error: BaseException, name: str) -> None:
    """However gRPC tells of it."""
    assert _error_type(error) == name
