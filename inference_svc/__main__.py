"""``python -m inference_svc``: one worker as a process."""

import sys

from observability import grpc_runtime

grpc_runtime.prepare()  # before an import below loads gRPC

from inference_svc.serve import serve
from inference_svc.settings import WorkerSettings
from observability.process import run

if __name__ == "__main__":
    sys.exit(run("sidecache-worker", WorkerSettings, serve))
