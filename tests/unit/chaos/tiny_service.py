"""The smallest service: reads its settings as ours do, says it is ready, drains on SIGTERM."""

import os
import signal
import socket
import sys
from pathlib import Path

if os.environ.get("TINY_FAIL"):
    sys.exit("tiny: no such colour: 'plaid'; it may be red or blue")

with socket.create_server(("127.0.0.1", 0)) as listener:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not os.environ.get("TINY_MUTE"):
        ready = Path(os.environ["TINY_SERVER__READY_FILE"])
        staged = ready.with_suffix(".new")
        staged.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        staged.rename(ready)
    while True:
        signal.pause()
