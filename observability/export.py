"""Spans and metrics on their way to a collector that may be dead.

The SDK's BatchSpanProcessor warns for every span it drops and its shutdown can
take 30 s. This queue counts what it drops, says once when the collector stops
and once when it resumes, and closes within the time it is given.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

MAX_QUEUED_SPANS: Final = 4096
MAX_BATCH: Final = 512
EXPORT_INTERVAL_S: Final = 1.0


class CollectorState:
    """Whether exports succeed; logs the change, never the repetition.

    Args:
        endpoint: for the log line.
        signal: spans or metrics.
    """

    def __init__(self, endpoint: str, signal: str) -> None:
        self._endpoint = endpoint
        self._signal = signal
        self._failing = False

    def report(self, *, ok: bool) -> None:
        """Note the outcome of one export."""
        if ok == (not self._failing):
            return
        self._failing = not ok
        if ok:
            logger.info("collector %s takes %s again", self._endpoint, self._signal)
        else:
            logger.info(
                "collector %s does not take %s; counting what is dropped",
                self._endpoint,
                self._signal,
            )


class SpanQueue(SpanProcessor):
    """Hands ended spans to an exporter from one thread; never waits, never raises.

    Args:
        exporter: may block in `export`; its `shutdown` must unblock it.
        state: told how each export went.
        max_spans: more than this many waiting are dropped and counted.
    """

    def __init__(
        self, exporter: SpanExporter, state: CollectorState, max_spans: int = MAX_QUEUED_SPANS
    ) -> None:
        self._exporter = exporter
        self._state = state
        self._max_spans = max_spans
        self._waiting: deque[ReadableSpan] = deque()
        self._lock = threading.Lock()
        self._dropped = 0
        self._in_flight = 0
        self._wake = threading.Event()
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="span-export", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Spans that never reached the collector."""
        return self._dropped

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            if self._closing or len(self._waiting) >= self._max_spans:
                self._dropped += 1
                return
            self._waiting.append(span)
            full = len(self._waiting) >= MAX_BATCH
        if full:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Export what waits, for at most `timeout_s`; the rest counts as dropped."""
        deadline = monotonic() + timeout_s
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._abandoned = True
        # Breaks off an export in flight; gRPC may take a moment to let go of it.
        self._exporter.shutdown()
        self._thread.join(max(0.0, deadline - monotonic()))
        self._drop(len(self._take(self._max_spans)))
        self._settle(ok=False)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export soon; does not wait."""
        self._wake.set()
        return True

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(EXPORT_INTERVAL_S)
            self._wake.clear()
            self._export_waiting()
        self._export_waiting()

    def _export_waiting(self) -> None:
        while not self._abandoned and (batch := self._take(MAX_BATCH)):
            self._in_flight = len(batch)
            ok = self._export(batch)
            self._settle(ok=ok)
            if not self._abandoned:
                self._state.report(ok=ok)

    def _export(self, batch: Sequence[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - a bad batch must not end the thread
            logger.debug("span export failed: %s", type(error).__qualname__)
            return False

    def _take(self, most: int) -> list[ReadableSpan]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _settle(self, *, ok: bool) -> None:
        """Count the batch in flight, once: here when it ended, or when close gave it up."""
        with self._lock:
            if not ok:
                self._dropped += self._in_flight
            self._in_flight = 0

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count


class CountingMetricExporter(MetricExporter):
    """Counts failed exports instead of logging each.

    Sums are cumulative, so a failed export costs resolution and no data.
    """

    def __init__(self, exporter: MetricExporter, state: CollectorState) -> None:
        super().__init__()
        self._exporter = exporter
        self._state = state
        self._lock = threading.Lock()
        self._exporting = False
        self._closed = False
        self.failed = 0

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        with self._lock:
            self._exporting = True
        try:
            result = self._exporter.export(metrics_data, timeout_millis, **kwargs)
        except Exception as error:  # noqa: BLE001 - a failed export must not end the thread
            logger.debug("metric export failed: %s", type(error).__qualname__)
            result = MetricExportResult.FAILURE
        ok = result is MetricExportResult.SUCCESS
        with self._lock:
            self._exporting = False
            if self._closed:
                return result
            self.failed += not ok
        self._state.report(ok=ok)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Break off the export in flight, which counts as failed now and not later."""
        with self._lock:
            self._closed = True
            self.failed += self._exporting
        self._exporter.shutdown(timeout_millis, **kwargs)
