"""Sends requests over a raw stub and writes down everything that comes back.

Raw on purpose: the client library checks offsets and turns errors into its own,
and a checker must see what was on the wire.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from chaos.history import Call, Ended, History, Received
from sidecache.stream_events import single_events
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

Metadata = Sequence[tuple[str, str]]


class Recorder:
    """A client that keeps a history.

    Attributes:
        phase: written on each call that is sent from now on.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        history: History,
        *,
        tenant: str = "",
        metadata: Metadata = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = history
        self.phase = ""
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._tenant = tenant
        self._metadata = tuple(metadata)
        self._clock = clock

    async def generate(
        self,
        request: pb.GenerateRequest,
        *,
        timeout_s: float = 30.0,
        watch: Callable[[pb.GenerateResponse], None] | None = None,
    ) -> Call:
        """Send one request and record its stream to the end; an error is a record too.

        Args:
            request: sent as it is, and kept.
            timeout_s: the call's deadline.
            watch: called with each event once it is recorded, to strike at the
                right moment.
        """
        record = self.history.open(request, self._tenant, self.phase, self._clock())
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            async for message in call:
                for event in single_events(message):
                    record.entries.append(Received(self._clock(), event))
                    if watch is not None:
                        watch(event)
                if len(record.entries) >= self.history.max_events:
                    record.entries.append(self._gave_up("more events than the history keeps"))
                    return record
            record.entries.append(Ended(self._clock(), "OK"))
        except grpc.aio.AioRpcError as error:
            record.entries.append(self._failed(error))
        except asyncio.CancelledError:
            record.entries.append(self._gave_up("cancelled"))
            raise
        finally:
            call.cancel()  # of no effect on a call that has ended
        return record

    def _failed(self, error: grpc.aio.AioRpcError) -> Ended:
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an aio error is a Call too
        for detail in status.details if status is not None else ():
            if detail.Unpack(info):
                break
        return Ended(self._clock(), error.code().name, info.reason, error.details() or "")

    def _gave_up(self, why: str) -> Ended:
        return Ended(self._clock(), "CANCELLED", text=why, by_client=True)
