"""What can be set about following the workers' KV caches."""

from typing import Annotated

from pydantic import Field

from observability.settings import MIB, ChannelSettings, PositiveSeconds, SettingsPart

Count = Annotated[int, Field(ge=1)]


class PrefixSettings(SettingsPart):
    """Which worker holds how much of a prompt, and what the prompt is in tokens."""

    enabled: bool = True
    """False: no worker is followed and no lookup gets a hint."""
    channels: ChannelSettings = ChannelSettings(max_message_bytes=64 * MIB)
    """How workers are dialled. Tokenizer files of large models come in one message."""
    max_workers: Count = 1024
    """Workers followed, of all routers together."""
    max_routers: Count = 64
    """Routers heard; of more, the one silent for longest is forgotten."""
    router_silence_s: PositiveSeconds = 30.0
    """A router that repeats nothing for so long is forgotten with its workers."""
    max_blocks_per_worker: Count = 1 << 18
    """Most blocks kept of one worker, or what its KV cache can hold where it says less."""
    max_blocks: Count = 1 << 23
    """Most blocks of all workers together, at about 85 bytes each."""
    call_timeout_s: PositiveSeconds = 5.0
    """Bound of asking a worker for its model or its load."""
    lost_grace_s: PositiveSeconds = 5.0
    """A worker that cannot be reached for so long is forgotten."""
    min_backoff_s: PositiveSeconds = 0.1
    """First wait before a worker is followed again."""
    max_backoff_s: PositiveSeconds = 5.0
    """Longest such wait."""
    settled_s: PositiveSeconds = 5.0
    """After so long without a fault the next wait is the shortest again."""
    unsupported_retry_s: PositiveSeconds = 60.0
    """Wait before a worker that publishes no KV events is asked again."""
    max_prompt_bytes: Count = MIB
    """Longer prompts are not tokenized and get no hint."""
    budget_s: PositiveSeconds = 0.045
    """Longest time that a lookup waits for its hint."""
    inline_bytes: Annotated[int, Field(ge=0)] = 1024
    """Shorter prompts are tokenized faster than a thread can be woken for them."""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads that tokenize longer prompts."""
    max_waiting: Count = 16
    """Prompts waiting for such a thread; beyond it there is no hint."""
    max_tokenizers: Count = 8
    """Tokenizers kept in memory."""
    max_tokenizer_bytes: Count = 64 * MIB
    """Largest tokenizer file that is read."""
    kept_segment_bytes: Annotated[int, Field(ge=0)] = 16 * MIB
    """Token ids of recent parts of prompts that are kept for each tokenizer, so that a
    growing conversation is not tokenized from its beginning each time."""
