"""Floor 2: a worker, one engine behind the gRPC contract."""
