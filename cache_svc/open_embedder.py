"""The embedder that the settings name, loaded and tried, and its queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cache_svc.embedder import Embedder
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.embedders.sentence_transformers import SentenceTransformersEmbedder
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.settings import SemanticSettings
from cache_svc.vector_index import VectorRefused, check_vector
from sidecache import weights
from sidecache.errors import SetupError

MINILM_WEIGHTS = "minilm-l6-v2-int8"


@asynccontextmanager
async def open_queue(settings: SemanticSettings) -> AsyncIterator[EmbeddingQueue]:
    """The queue in front of the embedder, until the block is left."""
    embedder = await asyncio.to_thread(load_embedder, settings)
    async with EmbeddingQueue.open(
        embedder,
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_text_bytes=settings.max_text_bytes,
        kept_vectors=settings.kept_vectors,
    ) as queue:
        yield queue


def load_embedder(settings: SemanticSettings) -> Embedder:
    """The embedder that the settings name, after it has shown that it works."""
    embedder: Embedder
    if settings.embedder == "sentence-transformers":
        if settings.embedder_path is None:
            raise SetupError(
                "semantic.embedder_path is not set; it must be the folder of a "
                "sentence-transformers model"
            )
        embedder = SentenceTransformersEmbedder(
            settings.embedder_path,
            window_tokens=settings.window_tokens,
            device=settings.embedder_device,
        )
    else:
        embedder = OnnxEmbedder(
            settings.embedder_path or weights.locate(MINILM_WEIGHTS),
            window_tokens=settings.window_tokens,
            threads=settings.embedder_threads,
        )
    try:
        check_vector(embedder.embed(["warm up"])[0], embedder.dimension)
    except VectorRefused as error:
        raise SetupError(f"the embedder returned no unit vector: {error.text}") from error
    return embedder
