"""Our own grpc.aio interceptors: one trace, one duration, one status for each call.

opentelemetry-instrumentation-grpc does not fit streams: it leaves spans open
after a cancel, marks cancelled and expired calls OK, and has no metrics.
"""

from observability.interceptors.client import (
    ClientEdge,
    UnaryStreamInterceptor,
    UnaryUnaryInterceptor,
    client_interceptors,
)
from observability.interceptors.server import ServerEdge, is_client_gone

__all__ = [
    "ClientEdge",
    "ServerEdge",
    "UnaryStreamInterceptor",
    "UnaryUnaryInterceptor",
    "client_interceptors",
    "is_client_gone",
]
