"""Sidecache: what a client installs. Start at :class:`sidecache.client.SidecacheClient`."""
