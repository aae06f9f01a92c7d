"""Tells an HTTP/2 server that nobody reads a stream any more.

Over HTTP/1.1 a response that is left closes its connection, and the server stops. Over HTTP/2
the connection is everybody's, and httpcore (1.0.9) leaves such a stream open: the server would
generate to the end for nobody, and what it still sends would use up the connection's window.
So the stream is reset (RFC 9113, 5.4.2 and 6.4), before its first token as well. httpcore has
no public way for that: one private method of its connection is extended, and
tests/contract/test_engine_remote_http2.py fails where a release has other names.
"""

from types import SimpleNamespace
from typing import Any

_CANCEL = 0x8  # RFC 9113, 7
_WRITE_TIMEOUT_S = 1.0
_WRITING = SimpleNamespace(extensions={"timeout": {"write": _WRITE_TIMEOUT_S}})


def teach_resets() -> None:
    """From now on every HTTP/2 connection that httpcore opens resets what is left unread."""
    from httpcore._async import http2  # noqa: PLC0415 - h2 comes with an extra

    if hasattr(http2.AsyncHTTP2Connection, "resets"):
        return

    class Connection(http2.AsyncHTTP2Connection):
        resets = True

        async def _response_closed(self, stream_id: int) -> None:
            """All ends come by here, good and bad ones."""
            try:
                await _reset(self, stream_id)
            finally:
                await super()._response_closed(stream_id)

    http2.AsyncHTTP2Connection = Connection  # type: ignore[misc]


async def _reset(connection: Any, stream_id: int) -> None:
    state = connection._h2_state  # noqa: SLF001 - see above
    stream = state.streams.get(stream_id)
    if stream is None or stream.closed or connection._connection_error:  # noqa: SLF001
        return
    for event in connection._events.get(stream_id, ()):  # noqa: SLF001
        # Else each stream that is left takes a piece of the connection's window with it.
        if unread := getattr(event, "flow_controlled_length", 0):
            state.acknowledge_received_data(unread, stream_id)
    state.reset_stream(stream_id, error_code=_CANCEL)
    await connection._write_outgoing_data(_WRITING)  # noqa: SLF001
