"""Generated from protos/sidecache/v1 by `make protos`; do not edit."""
