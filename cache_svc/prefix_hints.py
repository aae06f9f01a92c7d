"""The prefix part of a lookup: a prompt's ids, and who holds how much of it.

A hint is late, wrong or absent without harm: answers stay right, routing gets worse.
So every failure here is no hint, and nothing waits for one beyond the budget.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Self

from cache_svc.followed_models import FollowedModel, FollowedModels, ModelIdentity
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.prompt_tokenizer import PromptTokenizer
from cache_svc.tokenizers_kept import KeptTokenizers
from observability.metrics.cache import HintOutcome, PrefixMetrics
from sidecache.errors import SidecacheError
from sidecache.kv_blocks import BlockHasher, token_bytes
from sidecache.v1 import cache_pb2

log = logging.getLogger(__name__)

# Time kept back for the answer's way to a caller whose deadline is near.
REPLY_MARGIN_S = 0.005
# Prompts that take a thread for long have one thread's turn among them all.
LONG_BYTES = 64 * 1024

Named = tuple[cache_pb2.PrefixHint, Sequence[int]]


class _NoHint(Exception):
    """There is nothing to say, and why."""

    def __init__(self, outcome: HintOutcome) -> None:
        super().__init__(outcome)
        self.outcome: HintOutcome = outcome


class PrefixHints:
    """Makes hints from what the followers know.

    Args:
        executor: tokenizes what is too long for the event loop.
    """

    def __init__(
        self,
        models: FollowedModels,
        tokenizers: KeptTokenizers,
        settings: PrefixSettings,
        executor: Executor,
        metrics: PrefixMetrics,
    ) -> None:
        self._models = models
        self._tokenizers = tokenizers
        self._settings = settings
        self._executor = executor
        self._metrics = metrics
        self._waiting = 0
        self._long = 0

    def begin(self, query: cache_pb2.PrefixQuery, time_left_s: float | None) -> "PendingHint":
        """Start on a hint, within what the caller has left (None: no deadline)."""
        budget_s = self._settings.budget_s
        if time_left_s is not None:
            budget_s = min(budget_s, time_left_s - REPLY_MARGIN_S)
        return PendingHint(self, query, budget_s, at_once=not self._is_short(query))

    async def hint(
        self, query: cache_pb2.PrefixQuery, budget_s: float
    ) -> cache_pb2.PrefixHint | None:
        """The hint, or None where it could not be had in time; never an error."""
        started_s = time.perf_counter()
        outcome: HintOutcome = "given"
        hint = None
        try:
            async with asyncio.timeout(budget_s):
                hint = await self._make(query)
        except _NoHint as none:
            outcome = none.outcome
        except TimeoutError:
            outcome = "late"
        except SidecacheError:
            outcome = "refused"  # the chat template does not take it; neither will the worker
        except Exception:
            log.exception("a prefix hint failed")
            outcome = "failed"
        self._metrics.hinted(outcome, time.perf_counter() - started_s)
        if hint is not None:
            best = max((each.blocks for each in hint.held), default=0)
            self._metrics.matched(hint.prompt_blocks, best)
        return hint

    async def _make(self, query: cache_pb2.PrefixQuery) -> cache_pb2.PrefixHint:
        model = self._models.find(query.model, query.model_revision)
        if model is None:
            raise _NoHint("unknown_model")
        hint, names = await self._named(query, model)
        hint.prompt_blocks = len(names)
        for worker, blocks in model.index.match(names).items():
            hint.held.add(worker=worker, blocks=blocks)
        return hint

    async def _named(self, query: cache_pb2.PrefixQuery, model: FollowedModel) -> Named:
        """The prompt in ids and in names of blocks."""
        identity = model.identity
        tokenizer = self._tokenizers.find(identity.fingerprints)
        if tokenizer is None and query.WhichOneof("prompt") != "token_ids":
            raise _NoHint("no_tokenizer")
        size = query.ByteSize()
        if size > self._settings.max_prompt_bytes:
            raise _NoHint("too_long")
        if size <= self._settings.inline_bytes:
            return _name(query, identity, tokenizer)
        is_long = size > LONG_BYTES
        if self._waiting >= self._settings.max_waiting or (is_long and self._long):
            raise _NoHint("busy")
        return await asyncio.wrap_future(self._submit(query, identity, tokenizer, is_long=is_long))

    def _submit(
        self,
        query: cache_pb2.PrefixQuery,
        identity: ModelIdentity,
        tokenizer: PromptTokenizer | None,
        *,
        is_long: bool,
    ) -> "Future[Named]":
        loop = asyncio.get_running_loop()
        self._waiting += 1
        self._long += is_long
        future = self._executor.submit(_name, query, identity, tokenizer)

        def ended() -> None:
            self._waiting -= 1
            self._long -= is_long

        # A caller that gives up does not end the thread's work, so only its end counts.
        future.add_done_callback(lambda _: None if loop.is_closed() else _tell(loop, ended))
        return future

    def _is_short(self, query: cache_pb2.PrefixQuery) -> bool:
        return query.ByteSize() <= self._settings.inline_bytes


class PendingHint:
    """A hint in the making, beside the semantic tier; short prompts wait for its miss.

    Use as an async context manager: leaving it gives the hint up.
    """

    def __init__(
        self,
        hints: PrefixHints,
        query: cache_pb2.PrefixQuery,
        budget_s: float,
        *,
        at_once: bool,
    ) -> None:
        self._hints = hints
        self._query = query
        self._ends_s = asyncio.get_running_loop().time() + budget_s
        # A short prompt is tokenized on the event loop, which must not delay a hit.
        self._task = asyncio.create_task(self._make(), name="prefix hint") if at_once else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def result(self) -> cache_pb2.PrefixHint | None:
        """The hint; None where it could not be had in time."""
        return await (self._make() if self._task is None else self._task)

    async def _make(self) -> cache_pb2.PrefixHint | None:
        left_s = self._ends_s - asyncio.get_running_loop().time()
        return await self._hints.hint(self._query, left_s)


def _tell(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(ended)
    except RuntimeError:
        return  # closed while the thread was at work


def _name(
    query: cache_pb2.PrefixQuery, identity: ModelIdentity, tokenizer: PromptTokenizer | None
) -> Named:
    """Tokenize, write the hint's ids, and name the blocks; runs on any thread."""
    hint = cache_pb2.PrefixHint(
        tokenizer_fingerprint=identity.fingerprints.tokenizer,
        chat_template_fingerprint=identity.fingerprints.chat_template,
        block_size=identity.block_size,
    )
    ids = _ids(query, tokenizer)
    if len(ids) > identity.context_length:
        raise _NoHint("too_long")
    if query.WhichOneof("prompt") != "token_ids":
        hint.prompt_token_ids.ids.extend(ids)
    salt = query.cache_salt if identity.salted else ""
    hasher = BlockHasher(identity.block_size, query.adapter, salt)
    return hint, hasher.hashes_of_packed(token_bytes(ids))


def _ids(query: cache_pb2.PrefixQuery, tokenizer: PromptTokenizer | None) -> Sequence[int]:
    kind = query.WhichOneof("prompt")
    if kind == "token_ids":
        return array("I", query.token_ids.ids)
    if tokenizer is None:
        raise _NoHint("no_tokenizer")
    if kind == "chat":
        return tokenizer.encode_chat(query.chat, query.cache_salt)
    return tokenizer.encode_text(query.text, query.cache_salt)
