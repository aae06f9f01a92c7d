"""``python -m router``: one router process."""

import sys

from observability import grpc_runtime

grpc_runtime.prepare()  # before an import below loads gRPC

from observability.process import run
from router.serve import serve
from router.settings import RouterSettings

if __name__ == "__main__":
    sys.exit(run("sidecache-router", RouterSettings, serve))
