"""The composition root of a worker."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

from inference_svc.engine import Engine
from inference_svc.generation_record import GenerationRecorder
from inference_svc.kv_ledger import KvLedger
from inference_svc.lifecycle import Lifecycle
from inference_svc.reachable_blocks import ReachableBlocks
from inference_svc.service import InferenceServicer
from inference_svc.settings import WorkerSettings
from inference_svc.slots import Slots
from inference_svc.worker_service import WorkerServicer
from observability.gpu_metrics import GpuMetrics
from observability.metrics.shared import QueueMetrics
from observability.server import RunningServer, open_server
from observability.telemetry import Telemetry
from sidecache import weights
from sidecache.errors import SetupError
from sidecache.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc

DEFAULT_MODEL = "smollm2-135m-instruct"

# GetModel sends tokenizer files, of 7 to 30 MB for large vocabularies; who asks for
# them must take as much.
_MAX_SEND_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
)


@asynccontextmanager
async def serve(settings: WorkerSettings, telemetry: Telemetry) -> AsyncIterator[RunningServer]:
    """Serve one engine; the port opens, and health says SERVING, once it is warm.

    Raises:
        SetupError: the model cannot be used or the address cannot be listened on.
    """
    engine = make_engine(settings)
    ledger = KvLedger()
    engine.listen_kv(ReachableBlocks(ledger.record))
    # Loading may be interrupted half-way; closing is safe at any point.
    try:
        await engine.load()
        async with serve_engine(engine, settings, telemetry, ledger) as running:
            yield running
    finally:
        await engine.aclose()


@asynccontextmanager
async def serve_engine(
    engine: Engine, settings: WorkerSettings, telemetry: Telemetry, ledger: KvLedger
) -> AsyncIterator[RunningServer]:
    """Serve an engine that is loaded, and stays so when the block is left.

    Args:
        engine: stays its owner's to close.
        settings: where and how to serve.
        telemetry: records each call.
        ledger: has listened to the engine since before it was loaded.
    """
    lifecycle = Lifecycle()
    lifecycle.when_closed(ledger.close)
    inference = InferenceServicer(engine, settings, GenerationRecorder(telemetry), lifecycle)
    worker = WorkerServicer(engine, settings, lifecycle, ledger, epoch=uuid.uuid4().hex)
    QueueMetrics(telemetry.meter, "engine", lambda: engine.load_figures().waiting_sequences)
    GpuMetrics(telemetry.meter, lambda: _gpu(engine))

    def register(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)

    server = open_server(
        settings.server,
        telemetry,
        register,
        services=SERVICES,
        options=(("grpc.max_send_message_length", _MAX_SEND_BYTES),),
        end_streams=ledger.close,
    )
    async with server as running:
        # Whoever follows the health learns of a drain, or of the engine's death, at once.
        lifecycle.when_closed(lambda: running.set_serving(False))
        watch = asyncio.create_task(_watch_engine(engine, lifecycle))
        try:
            yield running
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


def make_engine(settings: WorkerSettings) -> Engine:
    """The engine that the settings name, not yet loaded."""
    slots = Slots(settings.max_sequences, settings.max_waiting, settings.retry_after_s)
    if settings.engine == "scripted":
        from inference_svc.engines.scripted import ScriptedEngine  # noqa: PLC0415 - only if chosen

        return ScriptedEngine(settings.scripted, slots, settings.model_name)
    if settings.engine == "vllm":
        return _make_vllm(settings, slots)
    if settings.engine == "tensorrt_llm":
        return _make_tensorrt_llm(settings, slots)
    if settings.engine == "remote":
        return _make_remote(settings, slots)
    # A scripted worker must not pay for the tokenizer's and OpenVINO's libraries.
    from inference_svc.engines.openvino import OpenVinoEngine  # noqa: PLC0415

    path = settings.model_path or weights.locate(DEFAULT_MODEL)
    return OpenVinoEngine(path, settings.model_name or DEFAULT_MODEL, settings.openvino, slots)


def _gpu(engine: Engine) -> tuple[int, int, float] | None:
    figures = engine.load_figures().gpu
    return (figures.used_bytes, figures.total_bytes, figures.utilization) if figures else None


def _make_vllm(settings: WorkerSettings, slots: Slots) -> Engine:
    from inference_svc.engines.vllm import VllmEngine  # noqa: PLC0415 - only if chosen

    if settings.model_path is None:
        raise SetupError(
            "engine vllm needs model_path (SIDECACHE_WORKER_MODEL_PATH): a folder with "
            "config.json, tokenizer.json and *.safetensors"
        )
    name = settings.model_name or settings.model_path.name
    return VllmEngine(settings.model_path, name, settings.vllm, slots)


def _make_tensorrt_llm(settings: WorkerSettings, slots: Slots) -> Engine:
    from inference_svc.engines.tensorrt_llm import TensorRtLlmEngine  # noqa: PLC0415 - only if chosen

    if settings.model_path is None:
        raise SetupError("the engine tensorrt_llm needs model_path: a checkpoint folder")
    name = settings.model_name or settings.model_path.name
    return TensorRtLlmEngine(settings.model_path, name, settings.tensorrt_llm, slots)


def _make_remote(settings: WorkerSettings, slots: Slots) -> Engine:
    try:
        from inference_svc.engines.remote import RemoteEngine  # noqa: PLC0415 - only if chosen
    except ModuleNotFoundError as error:
        raise SetupError(
            f"engine remote needs the package {error.name}: pip install 'sidecache[remote]'"
        ) from error
    path = settings.model_path or weights.locate(DEFAULT_MODEL)
    name = settings.model_name or (path.name if settings.model_path else DEFAULT_MODEL)
    return RemoteEngine(path, name, settings.remote, slots)


async def _watch_engine(engine: Engine, lifecycle: Lifecycle) -> None:
    """Once the engine is dead, refuse at the door."""
    failure = await engine.wait_failed()
    logger.error("the engine failed: %s", failure.text)
    lifecycle.close(failure)
