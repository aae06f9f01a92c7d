"""Floor 2: the cache sidecar, exact and semantic tiers in one round trip."""
