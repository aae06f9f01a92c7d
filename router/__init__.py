"""Floor 2: the gateway. Read :mod:`router.service` first: it is the request path."""
