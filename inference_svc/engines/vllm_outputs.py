"""What one sequence of vLLM has given and nobody has taken yet.

vLLM keeps a collector for each sequence; outputs that nobody takes are merged in it. Whoever
waits at it is woken by the first output, and by none after that, not even the last one:
so it is listened to here.
"""

from collections.abc import Callable
from typing import Any


class VllmOutputs:
    """One sequence's collector.

    Args:
        engine: the AsyncLLM it belongs to.
        collector: a RequestOutputCollector (0.25.1 to 0.32).
        tell: called with each output that comes; with True when it is the last one, or an error.
    """

    def __init__(self, engine: Any, collector: Any, tell: Callable[[bool], None]) -> None:
        self._engine = engine
        self._collector = collector
        self._tell = tell
        self._ended = False
        self._keep = collector.put
        collector.put = self._put
        if collector.output is not None:  # it came before we listened
            self._note(collector.output)

    def take(self) -> Any | None:
        """Everything that has come, as one output; None if nothing has.

        Raises:
            Exception: whatever ended the sequence.
        """
        return self._collector.get_nowait()

    async def abort(self) -> None:
        """Leave the batch, unless the engine has ended the sequence."""
        if not self._ended:
            await self._engine.abort(self._collector.request_id, internal=True)

    def _put(self, output: Any) -> None:
        self._keep(output)
        self._note(output)

    def _note(self, output: Any) -> None:
        last = isinstance(output, Exception) or bool(output.finished)
        if last and not self._ended:
            self._ended = True
            # Gives the collector its own method back, and so breaks the circle.
            del self._collector.put
        self._tell(last)
