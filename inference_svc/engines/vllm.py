"""vLLM behind the Engine protocol.

In-flight batching, paged KV cache (Kwon et al., 2023) and prefix reuse are the library's;
it steps in processes of its own. This side decides who joins and leaves, turns ids into
text and finds stop strings, so that all of that is the same on every engine.
docs/decisions/0018-vllm-and-remote.md has the reasons.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from inference_svc.choice import Choice
from inference_svc.engine import (
    Chat,
    EngineCapabilities,
    EngineLoad,
    GenerationRequest,
    ModelFacts,
    Sampling,
    TokenDelta,
)
from inference_svc.engines.adapters import check_adapter
from inference_svc.engines.checkpoint import Checkpoint, read_checkpoint
from inference_svc.engines.engine_life import EngineLife
from inference_svc.engines.gpu_memory import GpuMeter
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.pulled_sequence import Outputs
from inference_svc.engines.pulled_stream import PulledStream
from inference_svc.engines.sequence_stream import Step
from inference_svc.engines.vllm_arguments import sampling_parameters
from inference_svc.engines.vllm_blocks import BlockNames
from inference_svc.engines.vllm_outputs import read_step
from inference_svc.engines.vllm_processes import VllmProcesses
from inference_svc.engines.vllm_setup import check_adapters, load_vllm
from inference_svc.grammar import check_grammar
from inference_svc.kv_events import KvListener, ignore
from inference_svc.slots import Slots
from inference_svc.tokenizing import encode
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import EngineFailed, SetupError, SidecacheError

MAX_CHOICES = 8
_WARM_UP_PROMPT_TOKENS = 64
_WARM_UP_TOKENS = 4
_RESYNC_INTERVAL_S = 1.0


class VllmEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises.

    Args:
        model_path: a checkpoint folder as Hugging Face stores it.
        model_name: what requests call it.
    """

    def __init__(
        self, model_path: Path, model_name: str, settings: VllmSettings, slots: Slots
    ) -> None:
        self._model_path = model_path
        self._model_name = model_name
        self._settings = settings
        self._slots = slots
        self._numbers = itertools.count(1)
        self._life = EngineLife(slots)
        self._processes = VllmProcesses(model_path, settings, self._life.die)
        self._tell_kv: KvListener = ignore
        self._kv_cache_usage = 0.0
        self._kv_blocks = 0
        self._last_resync = float("-inf")
        self._adapters: dict[str, Any] = {}
        self._api: ModuleType
        self._kv: Any = None
        self._folder: str | None = None
        self._gpus: GpuMeter | None = None
        self._checkpoint: Checkpoint
        self._tokenizer: HfTokenizer
        self._facts: ModelFacts

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def pids(self) -> list[int]:
        """Of the engine's processes on this machine."""
        return self._processes.pids

    def listen_kv(self, listener: KvListener) -> None:
        self._tell_kv = listener

    async def load(self) -> None:
        self._life.begin()
        dummy = self._settings.load_format == "dummy"
        self._checkpoint = await asyncio.to_thread(
            read_checkpoint, self._model_path, with_weights=not dummy
        )
        self._tokenizer = await asyncio.to_thread(
            HfTokenizer, self._model_path, self._checkpoint.vocabulary_size
        )
        check_adapters(self._settings.adapters)
        self._api = await asyncio.to_thread(load_vllm, self._settings)
        self._adapters = {
            name: self._api.adapter_request(name, number, folder)
            for number, (name, folder) in enumerate(self._settings.adapters.items(), 1)
        }
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                await self._start()
                await self._warm_up()
        except TimeoutError:
            raise SetupError(
                f"vLLM did not load {self._model_path} within {self._settings.load_timeout_s:g} s "
                "(vllm.load_timeout_s)"
            ) from None
        except EngineFailed as error:
            raise self._processes.not_started(error) from error

    async def aclose(self) -> None:
        self._life.die(EngineFailed("the engine was closed"))
        await self._life.close_streams()
        if self._kv is not None:
            await self._kv.aclose()
            self._kv = None
        await self._processes.aclose()
        if self._gpus is not None:
            self._gpus.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        return await encode(self._tokenizer, prompt)

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        choices = [
            Choice(index, self._tokenizer.decoder(), request.stop) for index in range(request.n)
        ]
        ends = self._checkpoint.end_token_ids
        stream = PulledStream(request, choices, ends, self, self._slots)
        async with self._life.running(stream):
            yield stream

    def load_figures(self) -> EngineLoad:
        return replace(
            self._life.load_figures(),
            # vLLM says nothing after the last step, which an abort may have followed.
            kv_cache_usage=self._kv_cache_usage if self._slots.running else 0.0,
            kv_blocks=self._kv_blocks or None,
            gpu=self._gpus.read() if self._gpus is not None else None,
        )

    def silent_s(self) -> float:
        return self._life.silent_s()

    async def wait_failed(self) -> EngineFailed:
        return await self._life.wait_failed()

    async def add(
        self,
        request: GenerationRequest,
        prompt: list[int],
        done: int,
        seed: int,
        tell: Callable[[bool], None],
    ) -> Outputs:
        """Outputs of one sequence, to be taken when they are wanted."""
        outputs: Outputs = await self._api.add(
            *self._asked(request, prompt, done, seed), tell, **self._joining(request)
        )
        return outputs

    def generate(
        self, request: GenerationRequest, prompt: list[int], done: int, seed: int
    ) -> AsyncGenerator[Any, None]:
        """One sequence as vLLM itself streams it: what benchmarks compare a worker with."""
        outputs: AsyncGenerator[Any, None] = self._api.generate(
            *self._asked(request, prompt, done, seed), **self._joining(request)
        )
        return outputs

    def read(self, output: Any, wanted: int | None) -> Step:
        """What one of vLLM's outputs says."""
        return read_step(output, wanted)

    def failed(self, error: Exception) -> SidecacheError:
        """What the engine raised, as one of our errors; its death is everybody's."""
        ours: SidecacheError = self._api.as_our_error(error)
        engine = self._processes.engine
        if engine is None or not engine.errored:
            return ours
        return self._life.die(self._processes.death())

    def _asked(
        self, request: GenerationRequest, prompt: list[int], done: int, seed: int
    ) -> tuple[Any, list[int], Any, str]:
        ends = sorted(self._checkpoint.end_token_ids)
        parameters = sampling_parameters(request, done, seed, ends)
        return self._processes.engine, prompt, parameters, str(next(self._numbers))

    def _joining(self, request: GenerationRequest) -> dict[str, Any]:
        return {
            "salt": request.cache_salt,
            "adapter": self._adapters.get(request.adapter),
            "priority": request.priority,
        }

    async def _start(self) -> None:
        """Start vLLM's processes, hear its KV events, and watch that it lives."""
        endpoints = self._kv_endpoints()

        def observe(kv_cache_usage: float) -> None:
            self._kv_cache_usage = kv_cache_usage
            self._life.show_sign()

        await self._processes.start(
            self._api,
            max_sequences=self._slots.max_sequences,
            kv_endpoints=endpoints,
            observe=observe,
        )
        block_size, self._kv_blocks, context_length = self._api.figures(self._processes.engine)
        if self._kv is not None:
            self._kv.connect(BlockNames(block_size, self._kv_blocks, self._hear_kv))
        self._gpus = GpuMeter() if self._api.device_kind() == "cuda" else None
        self._facts = self._describe(block_size, context_length)

    def _kv_endpoints(self) -> tuple[str, str] | None:
        if not self._settings.kv_events:
            return None
        from inference_svc.engines.vllm_kv import KvEventStream  # noqa: PLC0415

        # Short, since a Unix socket's path may have 107 characters.
        self._folder = tempfile.mkdtemp(prefix="sc-kv-")
        self._kv = KvEventStream(Path(self._folder), self._resync)
        endpoints: tuple[str, str] = self._kv.endpoints
        return endpoints

    def _hear_kv(self, event: Any) -> None:
        self._tell_kv(event)

    async def _resync(self) -> None:
        """The cache holds blocks nobody can name: empty it, unless it is in use."""
        now = asyncio.get_running_loop().time()
        engine = self._processes.engine
        if now - self._last_resync < _RESYNC_INTERVAL_S or engine is None:
            return
        self._last_resync = now
        with suppress(Exception):  # a dying engine says so elsewhere
            await self._api.forget_prefixes(engine)

    async def _warm_up(self) -> None:
        """Greedy, then a burst of sampled streams: kernels, graphs and the sampler compile."""
        prompt = tuple(range(1, _WARM_UP_PROMPT_TOKENS + 1))
        longest = self._facts.context_length - len(prompt)
        if longest < 1:
            return
        tokens = min(_WARM_UP_TOKENS, longest)
        sampled = Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=1)
        burst = min(self._settings.warm_up_streams, self._slots.max_sequences)
        greedy = GenerationRequest("warm-up", prompt, tokens)
        bursts = [GenerationRequest("warm-up", prompt, tokens, sampled, logprobs=0)] * burst
        for requests in ([greedy], bursts):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._run(each)) for each in requests]
            for task in tasks:
                if (error := task.result()) is not None:
                    raise EngineFailed(error.text)
        if self._settings.prefix_caching:
            await self._api.forget_prefixes(self._processes.engine)

    async def _run(self, request: GenerationRequest) -> SidecacheError | None:
        """Run one request to its end; what went wrong, if anything did."""
        try:
            async with self.submit(request) as deltas:
                async for _ in deltas:
                    pass
        except SidecacheError as error:
            return error
        return None

    def _check(self, request: GenerationRequest) -> None:
        self._life.check()
        check_adapter(request.adapter, self._adapters)
        if request.guided is not None:
            check_grammar(request.guided)

    def _describe(self, block_size: int, context_length: int) -> ModelFacts:
        template = self._tokenizer.template_fingerprint
        return ModelFacts(
            name=self._model_name,
            revision=self._checkpoint.revision,
            engine="vllm",
            build=self._api.build(self._processes.engine),
            context_length=context_length,
            vocabulary_size=self._checkpoint.vocabulary_size,
            block_size=block_size,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            chat_template_fingerprint=template,
            tokenizer_files=self._tokenizer.files,
            capabilities=EngineCapabilities(
                guided_decoding=True,
                logprobs=True,
                seeded_sampling=True,
                priorities=self._settings.priority_scheduling,
                tools=self._tokenizer.knows_tools,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=self._settings.max_top_logprobs,
                kv_events=self._settings.kv_events,
                cache_salt=self._settings.prefix_caching,
                exact_continuation=(
                    self._settings.exact_continuation and not self._checkpoint.quantized
                ),
            ),
            adapters=tuple(self._adapters),
        )
