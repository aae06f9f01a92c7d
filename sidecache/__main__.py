"""``python -m sidecache``: the command line."""

import sys

from sidecache.cli import main

if __name__ == "__main__":
    sys.exit(main())
