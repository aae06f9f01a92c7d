"""TensorRT-LLM's LLM API behind the Engine protocol.

In-flight batching, the paged KV cache and its reuse are the library's, in processes of
its own; this side decides who joins and leaves, turns ids into text, and translates what
the library says of its KV cache. See docs/decisions/0019-tensorrt-llm.md.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inference_svc.engine import (
    Chat,
    EngineLoad,
    GenerationRequest,
    ModelFacts,
    Sampling,
    TokenDelta,
)
from inference_svc.engines import tensorrt_llm_sampling as words
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi, young_arguments
from inference_svc.engines.tensorrt_llm_checkpoint import (
    Checkpoint,
    check_quantization,
    read_checkpoint,
)
from inference_svc.engines.tensorrt_llm_facts import build, model_facts
from inference_svc.engines.tensorrt_llm_feeds import EngineFeeds
from inference_svc.engines.tensorrt_llm_kv import KvTranslator
from inference_svc.engines.tensorrt_llm_start import check_gpus, make_llm
from inference_svc.engines.tensorrt_llm_stream import TensorRtLlmStream
from inference_svc.kv_events import KvListener, ignore
from inference_svc.slots import Slots
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from inference_svc.tokenizing import encode
from sidecache.errors import EngineFailed, InvalidRequest, NotFound, SetupError

_SHUTDOWN_S = 30.0
# The first burst of sampling compiles kernels that greedy decoding never calls.
_WARM_UP = (Sampling(), Sampling(temperature=0.8, top_p=0.9, top_k=40))
_WARM_UP_TOKENS = 8

logger = logging.getLogger(__name__)


class TensorRtLlmEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises.

    Args:
        model_path: a checkpoint folder, or a built engine's for backend ``tensorrt``.
        model_name: what requests call it.
        make_api: finds the installed TensorRT-LLM.
    """

    def __init__(
        self,
        model_path: Path,
        model_name: str,
        settings: TensorRtLlmSettings,
        slots: Slots,
        make_api: Callable[[], TensorRtLlmApi] = TensorRtLlmApi,
    ) -> None:
        self._model_path = model_path
        self._model_name = model_name
        self._settings = settings
        self._slots = slots
        self._make_api = make_api
        self._tell_kv: KvListener = ignore
        self._streams: set[TensorRtLlmStream] = set()
        self._last_sign = 0.0
        self._llm: Any = None
        self._feeds: EngineFeeds | None = None
        self._translator: KvTranslator | None = None
        self._failure: asyncio.Future[EngineFailed] | None = None
        self._young: frozenset[str] = frozenset()
        self._api: TensorRtLlmApi
        self._tokenizer: HfTokenizer
        self._checkpoint: Checkpoint
        self._facts: ModelFacts
        self.request_error: type[Exception]

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def kv_translator(self) -> KvTranslator | None:
        """What became of the engine's KV events; None: they are off."""
        return self._translator

    def listen_kv(self, listener: KvListener) -> None:
        self._tell_kv = listener

    async def load(self) -> None:
        self._api = await asyncio.to_thread(self._make_api)
        self.request_error = self._api.request_error
        gpus = check_gpus(self._settings, self._api.gpus())
        self._checkpoint = await asyncio.to_thread(read_checkpoint, self._model_path)
        check_quantization(
            self._checkpoint, self._settings.quantization, self._settings.kv_cache_dtype, gpus
        )
        self._tokenizer = await asyncio.to_thread(HfTokenizer, self._model_path)
        for combination in self._settings.untested():
            logger.warning("TensorRT-LLM calls this combination untested: %s", combination)
        self._failure = asyncio.get_running_loop().create_future()
        self._llm = await make_llm(
            self._settings, self._model_path, self._slots.max_sequences, self._api
        )
        self._young = young_arguments(self._llm.generate_async)
        self._facts = model_facts(
            self._settings,
            self._model_name,
            self._checkpoint,
            self._tokenizer,
            build=build(self._settings, self._checkpoint, gpus, self._api.version),
            priorities="priority" in self._young,
            max_sequences=self._slots.max_sequences,
        )
        if self._settings.kv_events:
            self._translator = KvTranslator(
                self._settings.tokens_per_block, self._tell_kv, self._settings.max_known_blocks
            )
        self._feeds = EngineFeeds(
            self._llm,
            self._translator,
            timeout_s=self._settings.feed_timeout_s,
            silence_s=self._settings.kv_silence_s,
            alive=self.alive,
        )
        self._feeds.start()
        await self._warm_up()

    async def aclose(self) -> None:
        if self._failure is not None:
            self.die(EngineFailed("the engine was closed"))
        if self._feeds is not None:
            await self._feeds.aclose()
        running = [task for stream in self._streams for task in stream.tasks]
        if running:
            await asyncio.wait(running)
        llm, self._llm = self._llm, None
        if llm is not None:
            try:
                async with asyncio.timeout(_SHUTDOWN_S):
                    await asyncio.to_thread(llm.shutdown)
            except Exception as error:  # noqa: BLE001 - it is going away, however it dies
                logger.warning("TensorRT-LLM did not shut down cleanly: %r", error)

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        return await encode(self._tokenizer, prompt)

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        # The engine-building backend crashes when a request with log-probabilities is
        # aborted (TensorRT-LLM issue 10810): there such a request runs to its end.
        crashes = self._settings.backend == "tensorrt" and request.logprobs is not None
        stream = TensorRtLlmStream(
            request,
            self._tokenizer.decoder,
            self._checkpoint.end_token_ids,
            self,
            self._slots,
            abort_timeout_s=self._settings.abort_timeout_s,
            may_abort=not crashes,
        )
        self._streams.add(stream)
        try:
            yield stream
        finally:
            stream.abandon()
            self._forget_when_done(stream)

    def load_figures(self) -> EngineLoad:
        return EngineLoad(
            running_sequences=self._slots.running,
            waiting_sequences=self._slots.waiting,
            max_sequences=self._slots.max_sequences,
            waiting_prompt_tokens=self._slots.waiting_prompt_tokens,
            kv_cache_usage=self._kv_cache_usage(),
            kv_blocks=self._feeds.kv_blocks if self._feeds else None,
        )

    def _kv_cache_usage(self) -> float | None:
        if self._feeds is None or self._feeds.kv_cache_usage is None:
            return None
        # The last statistics may be older than the last stream's end.
        return self._feeds.kv_cache_usage if self._slots.running else 0.0

    def silent_s(self) -> float:
        if not any(stream.tasks for stream in self._streams):
            return 0.0
        return asyncio.get_running_loop().time() - self._last_sign

    async def wait_failed(self) -> EngineFailed:
        return await asyncio.shield(self._loaded())

    def generate(self, request: GenerationRequest, done: int, seed: int) -> Any:
        """Begin one choice in the engine."""
        prompt = list(request.prompt_token_ids)
        if request.continuation is not None:
            prompt += request.continuation.token_ids
        if not any(len(stream.tasks) > 1 for stream in self._streams):
            self.alive()  # it had nothing to say until now
        if self._translator is not None:
            self._translator.sending(prompt, request.adapter, request.cache_salt)
        sampling = words.sampling_params(
            request,
            done=done,
            seed=seed,
            end_token_ids=self._checkpoint.end_token_ids,
            api=self._api,
        )
        arguments = words.generate_arguments(
            request,
            prompt,
            sampling,
            adapters=self._settings.adapters,
            young=self._young,
            api=self._api,
        )
        result = self._llm.generate_async(**arguments)
        if self._feeds is not None:
            self._feeds.prompted()
        return result

    def filled(self, request: GenerationRequest, cached_tokens: int) -> None:
        """The prompt's KV blocks are there."""
        if self._feeds is not None:
            fresh = len(request.prompt_token_ids) - cached_tokens
            self._feeds.filled(fresh // self._settings.tokens_per_block)

    def alive(self) -> None:
        """The engine has said something."""
        self._last_sign = asyncio.get_running_loop().time()

    def die(self, failure: EngineFailed) -> None:
        """Every running request learns of it; later ones are refused."""
        if not self._loaded().done():
            self._loaded().set_result(failure)
        for stream in list(self._streams):
            stream.engine_died(EngineFailed(failure.text))

    def _check(self, request: GenerationRequest) -> None:
        if self._loaded().done():
            raise EngineFailed(self._loaded().result().text)
        if request.adapter and request.adapter not in self._settings.adapters:
            raise NotFound(
                f"adapter {request.adapter!r} is not known; this worker has "
                f"{', '.join(self._settings.adapters) or 'none'}",
                kind="adapter",
                name=request.adapter,
            )
        can = self._facts.capabilities
        if request.guided is not None and not can.guided_decoding:
            raise InvalidRequest("guided decoding is switched off here", field="guided")
        if request.logprobs is not None and not can.logprobs:
            raise InvalidRequest(
                "there are no log-probabilities with speculative decoding", field="logprobs"
            )
        sampling = request.sampling
        if sampling.temperature > 0 and sampling.seed is not None and not can.seeded_sampling:
            raise InvalidRequest(
                "this worker's sampler is not known to obey seeds", field="sampling.seed"
            )

    async def _warm_up(self) -> None:
        prompt = tuple(await self.tokenize("Warm up."))
        for sampling in _WARM_UP:
            request = GenerationRequest("warm-up", prompt, _WARM_UP_TOKENS, sampling)
            try:
                async with asyncio.timeout(self._settings.load_timeout_s):
                    async with self.submit(request) as deltas:
                        async for _ in deltas:
                            pass
            except (EngineFailed, InvalidRequest, TimeoutError) as error:
                raise SetupError(f"the model was loaded but cannot generate: {error}") from error

    def _forget_when_done(self, stream: TensorRtLlmStream) -> None:
        """Keep a stream until the engine has let go of it, so that its death is noticed."""
        if not stream.tasks:
            self._streams.discard(stream)
        for task in stream.tasks:
            task.add_done_callback(lambda _: self._forget_when_done(stream))

    def _loaded(self) -> asyncio.Future[EngineFailed]:
        if self._failure is None:
            raise EngineFailed("the engine was not loaded")
        return self._failure
