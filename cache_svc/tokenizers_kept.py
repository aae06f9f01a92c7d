"""The workers' tokenizers, fetched once for all workers that have the same."""

import asyncio
import logging
from collections import OrderedDict

import grpc

from cache_svc.prompt_tokenizer import (
    Fingerprints,
    PromptTokenizer,
    TokenizerRefused,
    read_tokenizer,
)
from sidecache.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)


class KeptTokenizers:
    """Tokenizers by their fingerprints; the one used longest ago goes first.

    Args:
        max_tokenizers: kept.
        max_file_bytes: of one worker's files together; larger ones are not read.
        kept_segment_bytes: ids each tokenizer keeps of recent parts of prompts.
    """

    def __init__(self, max_tokenizers: int, max_file_bytes: int, kept_segment_bytes: int) -> None:
        self._max_tokenizers = max_tokenizers
        self._max_file_bytes = max_file_bytes
        self._kept_segment_bytes = kept_segment_bytes
        # None: its files are of no use, and are not fetched again.
        self._kept: OrderedDict[Fingerprints, PromptTokenizer | None] = OrderedDict()
        # Workers of one model start together, and the files are large.
        self._fetching = asyncio.Lock()

    def find(self, fingerprints: Fingerprints) -> PromptTokenizer | None:
        """The tokenizer with these fingerprints, if it could be had."""
        if fingerprints in self._kept:
            self._kept.move_to_end(fingerprints)
        return self._kept.get(fingerprints)

    async def fetch(
        self,
        fingerprints: Fingerprints,
        worker: "worker_pb2_grpc.WorkerServiceAsyncStub",
        timeout_s: float,
    ) -> None:
        """Get the tokenizer from a worker, unless it is there already.

        Raises:
            grpc.aio.AioRpcError: the worker does not answer.
        """
        async with self._fetching:
            if fingerprints not in self._kept:
                self._keep(fingerprints, await self._read(fingerprints, worker, timeout_s))

    async def _read(
        self,
        fingerprints: Fingerprints,
        worker: "worker_pb2_grpc.WorkerServiceAsyncStub",
        timeout_s: float,
    ) -> PromptTokenizer | None:
        request = worker_pb2.GetModelRequest(include_files=True)
        try:
            answer = await worker.GetModel(request, timeout=timeout_s)
            return await asyncio.to_thread(
                read_tokenizer, self._files(answer), fingerprints, self._kept_segment_bytes
            )
        except TokenizerRefused as error:
            log.warning("prompts are not tokenized for a model: %s", error)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            log.warning("prompts are not tokenized for a model: its files exceed a message")
        return None

    def _files(self, answer: worker_pb2.GetModelResponse) -> dict[str, bytes]:
        size = sum(len(file.content) for file in answer.tokenizer_files)
        if size > self._max_file_bytes:
            raise TokenizerRefused(f"{size} bytes, may be {self._max_file_bytes}")
        return {file.name: file.content for file in answer.tokenizer_files}

    def _keep(self, fingerprints: Fingerprints, tokenizer: PromptTokenizer | None) -> None:
        self._kept[fingerprints] = tokenizer
        if len(self._kept) > self._max_tokenizers:
            self._kept.popitem(last=False)
