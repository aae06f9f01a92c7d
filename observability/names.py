"""Every attribute, metric and span name that Sidecache emits.

Copied, not imported: the `_incubating` modules of opentelemetry move between
releases. Sources: OpenTelemetry semantic conventions for RPC and for GenAI
(all of status Development). There is no convention for a gateway's cache, so
those names live in our own `sidecache.*` namespace.
"""

from typing import Final

# RPC (semantic conventions, rpc).
RPC_SYSTEM_NAME: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
GRPC: Final = "grpc"
LINK: Final = "sidecache.link"
OTHER_METHOD: Final = "_OTHER"  # a method that is not served

# GenAI (semantic-conventions-genai).
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a kind of token, not a secret
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
OPERATION_CHAT: Final = "chat"
OPERATION_TEXT_COMPLETION: Final = "text_completion"

EXCEPTION_TYPE: Final = "exception.type"

# Sidecache's own.
SOURCE: Final = "sidecache.source"  # engine, exact, semantic, coalesced
REQUEST_ID: Final = "sidecache.request_id"
WORKER: Final = "sidecache.worker"
TENANT: Final = "sidecache.tenant"
ENGINE: Final = "sidecache.engine"
ERROR_REASON: Final = "sidecache.error.reason"  # ErrorInfo.reason of the status
CACHE_OUTCOME: Final = "sidecache.cache.outcome"  # exact, semantic, miss, unavailable
CACHE_MISS_REASON: Final = "sidecache.cache.miss_reason"
CACHE_SIMILARITY: Final = "sidecache.cache.similarity"
CACHE_ENTRY_AGE_S: Final = "sidecache.cache.entry_age_s"
CACHE_STORE_STATUS: Final = "sidecache.cache.store_status"
CACHE_EVICTION_REASON: Final = "sidecache.cache.eviction_reason"
CACHE_BOUND_REGIME: Final = "sidecache.cache.bound_regime"  # serving, exact_only
PREFIX_OUTCOME: Final = "sidecache.prefix.outcome"  # given, late, busy, ...
PREFIX_HELD: Final = "sidecache.prefix.held"  # whether the best worker holds the block
PREFIX_STATE: Final = "sidecache.prefix.state"  # following, connecting, ...
PREFIX_FAULT: Final = "sidecache.prefix.fault"  # gap, epoch, ...
MIGRATION_OUTCOME: Final = "sidecache.migration.outcome"  # exact, best_effort, not_exact, ...
RETRY_OUTCOME: Final = "sidecache.retry.outcome"  # made, refused
SPLIT: Final = "sidecache.split"  # a public model name that stands for variants
VARIANT: Final = "sidecache.split.variant"
SPLIT_OUTCOME: Final = "sidecache.split.outcome"  # ok, error, cached, abandoned, refused
ROLLBACK_WHY: Final = "sidecache.split.rollback_why"
CANARY_ROLLED_BACK: Final = "sidecache.split.rolled_back"  # a span event
ROUTING_HINT: Final = "sidecache.routing.hint"  # given, none
ROUTING_TOKEN_IDS: Final = "sidecache.routing.token_ids"  # noqa: S105 - whether ids were sent on
ROUTING_HELD: Final = "sidecache.routing.held"  # here, elsewhere, nowhere
ROUTING_PROMISE: Final = "sidecache.routing.promise"  # kept, short, broken, untold
QUEUE_NAME: Final = "sidecache.queue.name"
ADMISSION_OUTCOME: Final = "sidecache.admission.outcome"  # admitted, too_late, ...
ADMISSION_STATE: Final = "sidecache.admission.state"  # running, waiting
PRIORITY_CLASS: Final = "sidecache.priority_class"  # interactive, standard, batch
RETRY_COUNT: Final = "sidecache.retry.count"
PROMPT_TOKENS_CACHED: Final = "sidecache.prompt_tokens.cached"
TELEMETRY_SIGNAL: Final = "sidecache.telemetry.signal"  # spans, metrics

# Metrics.
RPC_SERVER_CALL_DURATION: Final = "rpc.server.call.duration"
RPC_CLIENT_CALL_DURATION: Final = "rpc.client.call.duration"
GEN_AI_SERVER_REQUEST_DURATION: Final = "gen_ai.server.request.duration"
GEN_AI_SERVER_TIME_TO_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"  # noqa: S105
GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN: Final = "gen_ai.server.time_per_output_token"  # noqa: S105
TOKENS: Final = "sidecache.tokens"
PARAPHRASE_WAITS: Final = "sidecache.router.paraphrase_waits"
PARAPHRASE_OUTCOME: Final = "sidecache.router.paraphrase.outcome"  # hit, miss, late
SPECULATIONS: Final = "sidecache.router.speculations"
SPECULATION_WINNER: Final = "sidecache.router.speculation.winner"  # hit, miss, worker
CACHE_LOOKUPS: Final = "sidecache.cache.lookups"
CACHE_LOOKUP_DURATION: Final = "sidecache.cache.lookup.duration"
CACHE_STORES: Final = "sidecache.cache.stores"
CACHE_STORES_DROPPED: Final = "sidecache.cache.stores.dropped"
CACHE_LOST_ANSWERS: Final = "sidecache.cache.lost_answers"
CACHE_EVICTIONS: Final = "sidecache.cache.evictions"
CACHE_BOUND_CHANGES: Final = "sidecache.cache.bound.changes"
CACHE_ENTRIES: Final = "sidecache.cache.entries"
CACHE_BYTES: Final = "sidecache.cache.bytes"
PREFIX_HINTS: Final = "sidecache.prefix.hints"
PREFIX_HINT_DURATION: Final = "sidecache.prefix.hint.duration"
PREFIX_PROMPT_BLOCKS: Final = "sidecache.prefix.prompt_blocks"
PREFIX_BLOCKS: Final = "sidecache.prefix.blocks"
PREFIX_WORKERS: Final = "sidecache.prefix.workers"
PREFIX_EVENTS: Final = "sidecache.prefix.events"
PREFIX_RESYNCS: Final = "sidecache.prefix.resyncs"
PREFIX_BEHIND: Final = "sidecache.prefix.behind"
MIGRATIONS: Final = "sidecache.migrations"
HEDGES: Final = "sidecache.router.hedges"
HEDGE_OUTCOME: Final = "sidecache.router.hedge.outcome"  # won, lost, failed, no_room, no_budget
HEDGED_PROMPT_TOKENS: Final = "sidecache.router.hedge.prompt_tokens"
RETRIES: Final = "sidecache.retries"
QUARANTINED_PROMPTS: Final = "sidecache.quarantined_prompts"
WORKER_EJECTIONS: Final = "sidecache.worker.ejections"
SPLIT_REQUESTS: Final = "sidecache.split.requests"
SPLIT_SHARE: Final = "sidecache.split.share"
SPLIT_ROLLBACKS: Final = "sidecache.split.rollbacks"
ROUTING_STREAMS: Final = "sidecache.routing.streams"
ROUTING_PROMPT_BLOCKS: Final = "sidecache.routing.prompt_blocks"
ROUTING_PROMISES: Final = "sidecache.routing.promises"
QUEUE_DEPTH: Final = "sidecache.queue.depth"
QUEUE_WAIT_DURATION: Final = "sidecache.queue.wait.duration"
ADMISSION_DECISIONS: Final = "sidecache.admission.decisions"
ADMISSION_TOKENS: Final = "sidecache.admission.tokens"
ROUTER_DESIRED_WORKERS: Final = "sidecache.router.desired_workers"
TELEMETRY_DROPPED: Final = "sidecache.telemetry.dropped"

# Histogram boundaries in seconds, as the conventions give them.
RPC_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
REQUEST_DURATION_BUCKETS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
TIME_TO_FIRST_TOKEN_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
TIME_PER_OUTPUT_TOKEN_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5,
)  # fmt: skip
# Ours: a lookup must answer within 50 ms, so the interest lies below that.
LOOKUP_DURATION_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1,
)  # fmt: skip


def generation_span(operation: str, model: str) -> str:
    """The GenAI span name: `{gen_ai.operation.name} {gen_ai.request.model}`."""
    return f"{operation} {model}" if model else operation
