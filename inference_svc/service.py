"""InferenceService over any engine: one request from its bytes to its last token."""

import asyncio
import uuid
from typing import Any

import grpc

from inference_svc import events
from inference_svc.bounded_write import write_within
from inference_svc.engine import Engine, GenerationRequest, TokenDelta
from inference_svc.generation_record import GenerationRecord, GenerationRecorder
from inference_svc.lifecycle import Lifecycle
from inference_svc.messages import Messages, messages
from inference_svc.retention import read_retention
from inference_svc.settings import WorkerSettings
from inference_svc.validation import Prompt, check_model, read_prompt, read_request
from observability.tracing import current_trace_id
from sidecache.errors import InvalidRequest, Unsupported
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

REQUEST_ID_HEADER = "x-request-id"
MAX_REQUEST_ID_CHARACTERS = 128

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Generates for routers, or for any client that needs no cache."""

    def __init__(
        self,
        engine: Engine,
        settings: WorkerSettings,
        recorder: GenerationRecorder,
        lifecycle: Lifecycle,
    ) -> None:
        self._engine = engine
        self._facts = engine.facts
        self._settings = settings
        self._recorder = recorder
        self._lifecycle = lifecycle

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Stream one generation; leaving it by any way frees the engine's slot."""
        self._lifecycle.check_open()
        generation = await self._read(request, context)
        with self._recorder.record(generation, self._facts) as record:
            async with (
                self._engine.submit(generation) as deltas,
                messages(deltas, self._settings.coalesce_max_tokens, self._distance_s) as stream,
            ):
                with self._lifecycle.running(stream):
                    # The engine is asked first: what is said meanwhile costs no time.
                    await asyncio.sleep(0)
                    await self._write(context, self._started(generation))
                    await self._relay(stream, generation, record, context)

    async def Attach(self, request: pb.AttachRequest, context: Context) -> None:
        raise Unsupported("a worker keeps no detached streams: send the request again")

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: Context,
    ) -> pb.ListModelsResponse:
        facts = self._facts
        model = pb.Model(
            name=facts.name,
            revision=facts.revision,
            context_length=facts.context_length,
            engine=facts.engine,
            is_default=True,
            ready_workers=1,
        )
        return pb.ListModelsResponse(models=[model])

    async def Tokenize(
        self,
        request: pb.TokenizeRequest,
        context: Context,
    ) -> pb.TokenizeResponse:
        check_model(request.model, self._facts)
        prompt = read_prompt(request, self._facts, self._settings.max_prompt_bytes)
        return pb.TokenizeResponse(
            token_ids=await self._tokenize(prompt), context_length=self._facts.context_length
        )

    async def ReportWrongAnswer(
        self, request: pb.ReportWrongAnswerRequest, context: Context
    ) -> pb.ReportWrongAnswerResponse:
        raise Unsupported("a worker keeps no answers: report to the router that served it")

    async def _read(self, request: pb.GenerateRequest, context: Context) -> GenerationRequest:
        """Everything that can be refused before the engine hears of it."""
        check_model(request.model, self._facts)
        prompt = read_prompt(request, self._facts, self._settings.max_prompt_bytes)
        ids = await self._tokenize(prompt)
        return read_request(
            request,
            self._facts,
            request_id=_request_id(context),
            prompt_token_ids=ids,
            default_max_tokens=self._settings.default_max_tokens,
            retention=await read_retention(request, prompt, ids, self._engine.tokenize),
        )

    async def _tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return prompt
        return tuple(await self._engine.tokenize(prompt))

    async def _relay(
        self,
        stream: Messages,
        generation: GenerationRequest,
        record: GenerationRecord,
        context: Context,
    ) -> None:
        """Write what the engine gives until it has ended every choice."""
        while not stream.complete:
            delta = await stream.take(self._settings.progress_interval_s)
            if delta is not None:
                await self._deliver(delta, generation, record, context)
            elif record.first_token_s is None and self._engine_lives():
                await self._write(context, events.progress())

    async def _deliver(
        self,
        delta: TokenDelta,
        generation: GenerationRequest,
        record: GenerationRecord,
        context: Context,
    ) -> None:
        record.note_cached(delta)
        message = pb.GenerateResponse()
        if delta.token_ids or delta.text:
            message.delta.CopyFrom(events.delta(delta))
        if delta.finish_reason is not None:
            finished = events.finished(
                delta,
                delta.finish_reason,
                prompt_tokens=len(generation.prompt_token_ids),
                cached_prompt_tokens=record.cached_prompt_tokens,
                cached_is_estimate=self._facts.capabilities.cached_tokens_estimated,
            )
            message.finished.CopyFrom(finished)
        if message.ListFields():
            await self._write(context, message)
        record.delivered(delta)

    def _distance_s(self) -> float:
        """Between two messages of one stream, so that all together stay at the rate allowed."""
        return self._lifecycle.streams / self._settings.coalesce_max_messages_per_s

    async def _write(self, context: Context, event: pb.GenerateResponse) -> None:
        await write_within(self._settings.stall_timeout_s, context, event)

    def _started(self, generation: GenerationRequest) -> pb.GenerateResponse:
        return events.started(
            generation.request_id, self._settings.name, self._facts, current_trace_id()
        )

    def _engine_lives(self) -> bool:
        # Silence means trouble, so a heartbeat must not come from us alone.
        return self._engine.silent_s() < self._settings.engine_silence_s


def _request_id(context: Context) -> str:
    """The caller's own id for this request, or a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER:
            given = str(value)
            if not 1 <= len(given) <= MAX_REQUEST_ID_CHARACTERS:
                raise InvalidRequest(
                    f"{len(given)} characters; it may have 1 to {MAX_REQUEST_ID_CHARACTERS}",
                    field=REQUEST_ID_HEADER,
                )
            return given
    return uuid.uuid4().hex
