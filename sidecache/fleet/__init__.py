"""A whole Sidecache on one machine, as processes: what `sidecache up` runs.

The services are started by name (`python -m router`) and never imported, so
the slim client can hold the command that runs them.
"""
