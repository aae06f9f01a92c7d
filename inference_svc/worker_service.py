"""WorkerService over any engine: what a worker tells routers and sidecars of itself."""

from typing import Any

import grpc

from inference_svc.bounded_write import write_within
from inference_svc.engine import Engine
from inference_svc.kv_ledger import KvLedger
from inference_svc.kv_wire import to_wire
from inference_svc.lifecycle import Lifecycle
from inference_svc.settings import WorkerSettings
from sidecache.errors import InvalidRequest, Unsupported
from sidecache.v1 import worker_pb2 as pb
from sidecache.v1 import worker_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
MAX_DRAIN_GRACE_S = 3600.0


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Facts, load, drain, and what the KV cache holds.

    Args:
        ledger: listens to the engine.
        epoch: changes with every start of the worker.
    """

    def __init__(
        self,
        engine: Engine,
        settings: WorkerSettings,
        lifecycle: Lifecycle,
        ledger: KvLedger,
        epoch: str,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._epoch = epoch
        self._model = self._describe()

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: Context,
    ) -> pb.GetModelResponse:
        response = pb.GetModelResponse()
        response.CopyFrom(self._model)
        if request.include_files:
            for name, content in self._engine.facts.tokenizer_files.items():
                response.tokenizer_files.add(name=name, content=content)
        return response

    async def GetLoad(
        self,
        request: pb.GetLoadRequest,
        context: Context,
    ) -> pb.GetLoadResponse:
        load = self._engine.load_figures()
        gpu = load.gpu
        return pb.GetLoadResponse(
            epoch=self._epoch,
            running_sequences=load.running_sequences,
            waiting_sequences=load.waiting_sequences,
            max_sequences=load.max_sequences,
            kv_cache_usage=load.kv_cache_usage,
            waiting_prompt_tokens=load.waiting_prompt_tokens,
            draining=self._lifecycle.draining,
            kv_blocks=load.kv_blocks,
            gpu_memory_used_bytes=gpu.used_bytes if gpu else None,
            gpu_memory_total_bytes=gpu.total_bytes if gpu else None,
            gpu_utilization=gpu.utilization if gpu else None,
        )

    async def Drain(
        self,
        request: pb.DrainRequest,
        context: Context,
    ) -> pb.DrainResponse:
        grace_s = self._settings.server.drain_grace_s
        if request.HasField("grace"):
            grace_s = request.grace.ToNanoseconds() / 1e9
        if not 0 <= grace_s <= MAX_DRAIN_GRACE_S:
            raise InvalidRequest(
                f"{grace_s:g} s is not in [0, {MAX_DRAIN_GRACE_S:g}]", field="grace"
            )
        return pb.DrainResponse(aborted_streams=await self._lifecycle.drain(grace_s))

    async def SubscribeKvEvents(
        self,
        request: pb.SubscribeKvEventsRequest,
        context: Context,
    ) -> None:
        """Send what the KV cache holds, then every change, until the worker drains."""
        if not self._engine.facts.capabilities.kv_events:
            raise Unsupported("this engine publishes no KV events; route by load")
        known = request.epoch == self._epoch
        cursor = self._ledger.follow(request.start_sequence if known else 0)
        try:
            while await cursor.wait():
                for item in cursor.take():
                    event = to_wire(self._epoch, item, self._ledger.sequence)
                    await write_within(self._settings.stall_timeout_s, context, event)
        finally:
            cursor.close()

    def _describe(self) -> pb.GetModelResponse:
        facts = self._engine.facts
        can = facts.capabilities
        return pb.GetModelResponse(
            name=facts.name,
            revision=facts.revision,
            engine=facts.engine,
            engine_build=facts.build,
            context_length=facts.context_length,
            vocabulary_size=facts.vocabulary_size,
            block_size=facts.block_size,
            tokenizer_fingerprint=facts.tokenizer_fingerprint,
            chat_template_fingerprint=facts.chat_template_fingerprint,
            epoch=self._epoch,
            worker=self._settings.name,
            capabilities=pb.Capabilities(
                guided_decoding=can.guided_decoding,
                logprobs=can.logprobs,
                seeded_sampling=can.seeded_sampling,
                priorities=can.priorities,
                max_choices=can.max_choices,
                max_top_logprobs=can.max_top_logprobs,
                kv_events=can.kv_events,
                cache_salt=can.cache_salt,
                retention=can.retention,
                cached_tokens_estimated=can.cached_tokens_estimated,
                exact_continuation=can.exact_continuation,
            ),
            adapters=facts.adapters,
        )
