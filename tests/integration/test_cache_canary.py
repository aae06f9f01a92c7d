"""A secret in prompts, names and ids meets no span, metric or log line on any path of the cache."""

import json
from pathlib import Path

import pytest

from sidecache.client import CacheControl, ChatMessage, SidecacheClient, Source
from sidecache.errors import SidecacheError
from sidecache.v1 import admin_pb2
from tests.fixtures.cached import if_cached, until_cached
from tests.fixtures.stack import KEYS
from tests.integration.test_one_trace import fleet

CANARY = "canary"
SECRET = f"Where does my {CANARY} 4711 sleep at night?"
PARAPHRASE = f"Where at night does my {CANARY} 4711 sleep?"
CONTROL = CacheControl(namespace=f"{CANARY}-space", tags=[f"{CANARY}-tag"])


async def _everything(client: SidecacheClient, operator: SidecacheClient) -> None:
    """Each path that content can take: served, explained, reported, refused, purged."""
    stored = await until_cached(client, SECRET, cache=CONTROL)
    in_space = CacheControl(namespace=CONTROL.namespace)
    similar = await if_cached(client, PARAPHRASE, cache=in_space)
    assert similar is not None
    assert similar.source is Source.SEMANTIC
    leaning = [
        ChatMessage(role="user", content=SECRET),
        ChatMessage(role="assistant", content=f"In its {CANARY} cage."),
        ChatMessage(role="user", content=f"And the other {CANARY}?"),
    ]
    for prompt in (SECRET, PARAPHRASE, f"Where does my {CANARY} not sleep?", leaning):
        await operator.explain_cache(prompt, tenant="acme", max_tokens=8, cache=in_space)
    await client.report_wrong(stored.cache_entry_id)
    for refused in (
        client.report_wrong(f"{CANARY}-entry"),
        client.complete(SECRET, cache=CacheControl(tags=[CANARY], no_store=True)),
        client.complete(SECRET, model=f"{CANARY}-model"),
        operator.explain_cache(SECRET, tenant="acme", model=f"{CANARY}-model"),
        client.explain_cache(SECRET),
        operator.invalidate_cache(admin_pb2.InvalidateCacheRequest(tenant=CANARY)),
    ):
        with pytest.raises(SidecacheError):
            await refused
    for purge in (
        admin_pb2.InvalidateCacheRequest(tenant="acme", tag=CONTROL.tags[0]),
        admin_pb2.InvalidateCacheRequest(tenant="acme", namespace=CONTROL.namespace),
        admin_pb2.InvalidateCacheRequest(tenant="acme", entry_id=CANARY, model=CANARY),
    ):
        await operator.invalidate_cache(purge)


@pytest.mark.timeout(90)
async def test_content_stays_out_of_telemetry(tmp_path: Path, minilm_path: Path) -> None:
    """Spans, metrics and logs of router, worker and sidecar hold no word of it."""
    async with fleet(tmp_path, minilm_path) as parts:
        address = parts.client.address
        async with SidecacheClient(address, api_key=KEYS["operator"]) as operator:
            await _everything(parts.client, operator)
        for process in parts.processes:
            assert await process.terminate() == 0  # flushes what is still to be exported
            for line in process.log_tail(10_000).splitlines():
                assert CANARY not in line
                assert json.loads(line)["level"] in {"INFO", "WARNING"}
        spans = parts.received.spans
        met = {span.name.rpartition("/")[2] for _, span in spans}
        assert met >= {
            "ExplainCache",
            "InvalidateCache",
            "ReportWrongAnswer",
            "Explain",
            "Feedback",
        }
        assert not [span.name for _, span in spans if CANARY in str(span)]
        assert parts.received.metric_exports
        assert CANARY.encode() not in parts.received.metrics
