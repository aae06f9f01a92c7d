"""`python -m cache_svc`: one cache sidecar until SIGTERM."""

import sys

from observability import grpc_runtime

grpc_runtime.prepare()  # before an import below loads gRPC

from cache_svc.serve import serve
from cache_svc.settings import CacheSettings
from observability.process import run

if __name__ == "__main__":
    sys.exit(run("sidecache-cache", CacheSettings, serve))
