"""The fake's LLM: batches in flight on a thread of its own, one token a step for each.

A token is a function of everything before it, so a prompt with an answer's beginning
goes on as the answer did, and of the seed if it samples.
"""

import hashlib
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.tensorrt_llm.kv_cache import Bugs, FakeKvCache
from tests.fakes.tensorrt_llm.results import (
    Deliveries,
    FakeIterationResult,
    FakeRequestOutput,
    check_members,
)
from tests.fakes.tensorrt_llm.surface import Surface

_MASK = 2**64 - 1


class RequestError(RuntimeError):
    """One request is refused; the engine lives on."""


@dataclass
class Script:
    """What the fake does.

    Attributes:
        tokens: ids it may generate.
        end_after: an answer ends by itself at this length; None: never.
        guided: what it says to a request with a grammar, then it stops.
        step_s: time of one step.
        blocks: of the KV cache.
        max_seq_len: most tokens of prompt and answer.
        gpus: name and compute capability of each.
        die_at_start: the constructor fails with this text.
        die_after_steps: the engine dies after so many steps with work.
        hang_after_steps: it stops stepping after so many.
        deaf_to_abort: aborts are not obeyed.
        ignore_seeds: samplers before August 2026.
        logprobs_kill: issue 10810, an abort with log-probabilities kills the engine.
        hex_hashes: events number blocks by hexadecimal digits, as KV cache manager 2 does.
        without: what another version lacks, for Surface.
        renamed: what another version calls otherwise; modules and fields, for Surface.
    """

    tokens: Sequence[int] = tuple(range(5, 500))
    end_after: int | None = None
    guided: Sequence[int] = ()
    step_s: float = 0.001
    blocks: int = 4096
    max_seq_len: int = 8192
    gpus: Sequence[tuple[str, tuple[int, int]]] = (("Fake H100", (9, 0)),)
    die_at_start: str = ""
    die_after_steps: int | None = None
    hang_after_steps: int | None = None
    deaf_to_abort: bool = False
    ignore_seeds: bool = False
    logprobs_kill: bool = False
    bugs: Bugs = field(default_factory=Bugs)
    hex_hashes: bool = False
    without: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Sequence:
    output: FakeRequestOutput
    params: Any
    tokens: list[int]
    scope: str
    priority: float
    priorities: list[int]
    state: int = 0
    generated: int = 0
    held: list[int] = field(default_factory=list)
    cached: int = 0
    prefilled: bool = False
    aborted: bool = False


class FakeLLM:
    """See tensorrt_llm/llmapi/llm.py; made by :class:`~tests.fakes.tensorrt_llm.modules`."""

    def __init__(self, surface: Surface, script: Script, arguments: dict[str, Any]) -> None:
        check_members(surface)
        if script.die_at_start:
            raise RuntimeError(script.die_at_start)
        self.calls: list[dict[str, Any]] = []
        self.arguments = arguments
        self._surface = surface
        self._script = script
        config = arguments["kv_cache_config"]
        self._events_on = config.enable_block_reuse and config.event_buffer_max_size > 0
        self.cache = FakeKvCache(
            config.tokens_per_block,
            script.blocks,
            script.bugs,
            reuse=config.enable_block_reuse,
            hex_hashes=script.hex_hashes,
        )
        self._by_priority = (
            getattr(arguments["scheduler_config"], "waiting_queue_policy", "") == "priority"
        )
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._next_request = 0
        self._steps = 0
        self._deliveries = Deliveries()
        self._events: FakeIterationResult | None = None
        self._stats: FakeIterationResult | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def begin(self, given: dict[str, Any]) -> FakeRequestOutput:
        """What generate_async does, its arguments checked."""
        if self._stopped:
            raise RuntimeError("LLM is shutting down")
        self._deliveries.bind()
        self.calls.append(given)
        self._renew()
        params = given["sampling_params"]
        if params.end_id is None and self.arguments.get("skip_tokenizer_init"):
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if not 0 <= given.get("priority", 0.5) <= 1:
            raise ValueError("priority must be a float in [0.0, 1.0]")
        ids = list(given["inputs"]["prompt_token_ids"])
        self._check_length(ids)
        self._next_request += 1
        output = FakeRequestOutput(self._next_request, ids, self._abort)
        if len(ids) + params.max_tokens > self._script.max_seq_len:
            error = RequestError(f"{len(ids)} + {params.max_tokens} tokens are too many")
            self._deliveries.send([(output, error)])
            return output
        lora = given.get("lora_request")
        scope = f"{given.get('cache_salt')} {lora.lora_int_id if lora else 0}"
        sequence = _Sequence(
            output,
            params,
            ids,
            scope,
            given.get("priority", 0.5),
            self._priorities(given.get("kv_cache_retention_config")),
        )
        for token in ids:
            sequence.state = _mix(sequence.state, token)
        if lora:
            sequence.state = _mix(sequence.state, lora.lora_int_id)
        with self._lock:
            self._waiting.append(sequence)
        self._wake.set()
        return output

    def _check_length(self, ids: list[int]) -> None:
        """Refuse, at once, what does not fit in a step and may not be cut (_check_arguments)."""
        most = self.arguments["max_num_tokens"]
        if not self.arguments["enable_chunked_prefill"] and len(ids) > most:
            raise RequestError(f"{len(ids)} should not exceed max_num_tokens ({most})")

    def kv_events(self, timeout: float | None) -> FakeIterationResult:
        """What get_kv_cache_events_async returns."""
        assert self._events is not None, "no prompt was submitted yet"
        self._events.set_timeout(timeout)
        return self._events

    def stats(self, timeout: float | None) -> FakeIterationResult:
        """What get_stats_async returns."""
        assert self._stats is not None, "no prompt was submitted yet"
        self._stats.set_timeout(timeout)
        return self._stats

    def stop(self) -> None:
        """What shutdown does."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=5)

    def _renew(self) -> None:
        if self._events is None or self._stats is None:
            self._events, self._stats = FakeIterationResult(), FakeIterationResult()
        self._events.mark_undone()
        self._stats.mark_undone()

    def _priorities(self, retention: Any) -> list[int]:
        if retention is None:
            return []
        size = self.cache.block_size
        found: list[int] = []
        for each in retention.token_range_retention_configs:
            found += [each.priority] * math.ceil((each.token_end - each.token_start) / size)
        return found

    def _abort(self, request_id: int) -> None:
        with self._lock:
            for each in [*self._running, *self._waiting]:
                if each.output.request_id == request_id:
                    each.aborted = True
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            while not self._stopped and (self._running or self._waiting):
                # The pace of the fake hardware.
                threading.Event().wait(self._script.step_s)
                if self._steps == self._script.hang_after_steps:
                    continue
                self._steps += 1
                with self._lock:
                    batch = self._step()
                self._deliveries.send(batch)

    def _step(self) -> list[tuple[Any, Any]]:
        if self._steps == self._script.die_after_steps or self._killed_by_abort():
            return self._die()
        self._admit()
        batch: list[tuple[Any, Any]] = []
        for each in list(self._running):
            batch += self._advance(each)
        if self._events_on:
            batch += [(self._events, event) for event in self.cache.events()]
        if self.arguments.get("enable_iter_perf_stats"):
            batch.append((self._stats, self._statistics()))
        return batch

    def _admit(self) -> None:
        if self._by_priority:
            self._waiting = deque(sorted(self._waiting, key=lambda each: -each.priority))
        while self._waiting and len(self._running) < self.arguments["max_batch_size"]:
            each = self._waiting.popleft()
            each.held, each.cached = self.cache.begin(each.tokens, each.scope)
            self._running.append(each)

    def _advance(self, each: _Sequence) -> list[tuple[Any, Any]]:
        if each.aborted and not self._script.deaf_to_abort:
            return [self._finish(each, [], "cancelled")]
        if not each.prefilled:
            each.prefilled = True
            if self.arguments["kv_cache_config"].enable_block_reuse:
                self.cache.store(each.tokens, each.scope, each.held, each.priorities)
        token, reason = self._next_token(each)
        each.tokens.append(token)
        each.state = _mix(each.state, token)
        each.generated += 1
        if reason is None and each.generated >= each.params.max_tokens:
            reason = "length"
        if reason is not None:
            return [self._finish(each, [token], reason)]
        return [(each.output, self._response(each, [token], None))]

    def _next_token(self, each: _Sequence) -> tuple[int, str | None]:
        if each.params.guided_decoding is not None and self._script.guided:
            last = each.generated == len(self._script.guided) - 1
            return self._script.guided[each.generated], "stop" if last else None
        if each.generated == self._script.end_after:
            return each.params.end_id, "stop"
        chosen = each.state
        if _samples(each.params):
            seed = 0 if self._script.ignore_seeds else (each.params.seed or 0)
            chosen = _mix(chosen, seed)
            if self._script.ignore_seeds:
                chosen = _mix(chosen, each.output.request_id)
        return self._script.tokens[chosen % len(self._script.tokens)], None

    def _finish(self, each: _Sequence, ids: list[int], reason: str) -> tuple[Any, Any]:
        self._running.remove(each)
        self.cache.end(each.tokens, each.scope, each.held)
        return each.output, self._response(each, ids, reason)

    def _response(self, each: _Sequence, ids: list[int], reason: str | None) -> dict[str, Any]:
        logprobs: list[Any] = []
        if each.params.logprobs:
            made = self._surface.make("Logprob")
            for token in ids:
                likely = {token: made(logprob=-0.1, rank=1)}
                likely |= {
                    token + more: made(logprob=-0.1 - more, rank=1 + more)
                    for more in range(1, each.params.logprobs)
                }
                logprobs.append(likely)
        return {"ids": ids, "logprobs": logprobs, "reason": reason, "cached": each.cached}

    def _killed_by_abort(self) -> bool:
        return self._script.logprobs_kill and any(
            each.aborted and each.params.logprobs for each in self._running
        )

    def _die(self) -> list[tuple[Any, Any]]:
        self._stopped = True
        lost = [*self._running, *self._waiting]
        self._running.clear()
        self._waiting.clear()
        return [(each.output, RuntimeError("a worker process has died")) for each in lost]

    def _statistics(self) -> dict[str, Any]:
        return {
            "iter": self._steps,
            "numActiveRequests": len(self._running),
            "numQueuedRequests": len(self._waiting),
            "maxNumActiveRequests": self.arguments["max_batch_size"],
            "kvCacheStats": {
                "maxNumBlocks": self.cache.capacity,
                "usedNumBlocks": self.cache.used,
                "freeNumBlocks": self.cache.capacity - self.cache.used,
                "tokensPerBlock": self.cache.block_size,
            },
        }


def _samples(params: Any) -> bool:
    """As SamplingParams.params_imply_greedy_decoding, turned round."""
    unset = params.temperature is None and params.top_p is None and params.top_k is None
    return not (unset or params.top_k == 1 or params.top_p == 0 or params.temperature == 0)


def _mix(state: int, value: int) -> int:
    packed = state.to_bytes(8) + (value & _MASK).to_bytes(8)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest())
