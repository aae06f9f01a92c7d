"""One stream's hold on a worker, and the load it stands for until it ends."""

from router.worker import Worker


class Lease:
    """Counts on its worker from the choice on: as queued until the first token, then as active.

    Args:
        worker: whose stream it is.
        prompt_tokens: counted or estimated.
        uncached_tokens: of those, what has to be prefilled.
    """

    __slots__ = ("_is_due", "_is_queued", "_prompt_tokens", "_uncached_tokens", "worker")

    def __init__(self, worker: Worker, prompt_tokens: int = 0, uncached_tokens: int = 0) -> None:
        self.worker = worker
        self._prompt_tokens = prompt_tokens
        self._uncached_tokens = uncached_tokens
        self._is_queued = True
        self._is_due = True
        load = worker.load
        if not worker.leases:
            worker.heard()
        worker.leases += 1
        worker.words_due += 1
        load.queued_tokens += uncached_tokens
        load.pending_tokens += prompt_tokens
        load.active_tokens += prompt_tokens

    def answered(self) -> None:
        """The worker has the request: its next word comes when the prefill is over."""
        if self._is_queued and self._is_due:
            self._is_due = False
            self.worker.words_due -= 1

    def first_token(self) -> None:
        """The prefill is over; said again, it changes nothing."""
        if not self._is_queued:
            return
        self._end_prefill()
        if not self._is_due:
            self._is_due = True
            self.worker.words_due += 1

    def release(self) -> None:
        """The stream is over, however it ended; once a lease."""
        if self._is_queued:
            self._end_prefill()
        self.worker.words_due -= self._is_due
        self.worker.load.active_tokens -= self._prompt_tokens
        self.worker.leases -= 1

    def _end_prefill(self) -> None:
        self._is_queued = False
        self.worker.load.queued_tokens -= self._uncached_tokens
        self.worker.load.pending_tokens -= self._prompt_tokens
