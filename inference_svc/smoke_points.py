"""The points of the engine contract, each to be tried on an engine nobody prepared.

A point raises :class:`Broken` when the engine does not keep it and :class:`Skipped` when
the engine does not claim it; else it returns a line of what was seen.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from inference_svc.engine import (
    Chat,
    ChatMessage,
    Continuation,
    Engine,
    FinishReason,
    GenerationRequest,
    Guided,
    Sampling,
    TokenDelta,
)
from inference_svc.kv_events import BlocksRemoved, BlocksStored, KvEvent
from inference_svc.validation import read_request
from sidecache.errors import PromptTooLong
from sidecache.kv_blocks import BlockHasher
from sidecache.v1 import inference_pb2 as pb

_QUESTION = "Write a short poem about the sea."
_TOKENS = 24
_CANCEL_S = 0.1
_EVENTS_S = 10.0


class Skipped(Exception):
    """The engine does not claim this, and why."""


class Broken(Exception):
    """The engine does not keep this, and how."""


@dataclass(slots=True)
class Answer:
    """What one stream said of its first choice."""

    deltas: list[TokenDelta] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All its tokens."""
        return [token_id for delta in self.deltas for token_id in delta.token_ids]

    @property
    def text(self) -> str:
        """All its text."""
        return "".join(delta.text for delta in self.deltas)


class Holder:
    """Remembers which blocks the engine said it holds."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def __call__(self, event: KvEvent) -> None:
        if isinstance(event, BlocksStored):
            self.held.update(event.hashes)
        elif isinstance(event, BlocksRemoved):
            self.held.difference_update(event.hashes)
        else:
            self.held.clear()


class Trial:
    """An engine under trial.

    Args:
        adapter: a LoRA adapter to try; empty: none.
    """

    def __init__(self, engine: Engine, adapter: str = "") -> None:
        self.engine = engine
        self.adapter = adapter
        self.holder = Holder()

    async def request(
        self, question: str = _QUESTION, tokens: int = _TOKENS, **more: Any
    ) -> GenerationRequest:
        """A request for one question."""
        try:
            prompt = await self.engine.tokenize(Chat((ChatMessage("user", question),)))
        except Exception:  # noqa: BLE001 - a base model has no chat template
            prompt = await self.engine.tokenize(question)
        return GenerationRequest("smoke", tuple(prompt), tokens, **more)

    async def ask(self, question: str = _QUESTION, tokens: int = _TOKENS, **more: Any) -> Answer:
        """Run a request to its end and check the order of what came."""
        async with self.engine.submit(await self.request(question, tokens, **more)) as deltas:
            return await _read(deltas)


@asynccontextmanager
async def _begun(trial: Trial, tokens: int) -> AsyncIterator[None]:
    """A request in the middle of its answer."""
    async with trial.engine.submit(await trial.request(tokens=tokens)) as deltas:
        await anext(deltas)
        yield


async def _read(deltas: AsyncIterator[TokenDelta]) -> Answer:
    answer = Answer()
    next_offset: int | None = None
    async for delta in deltas:
        if answer.deltas and answer.deltas[-1].finish_reason is not None:
            _broken("a delta came after the finish reason")
        if next_offset is not None and delta.offset != next_offset:
            _broken(f"offset {delta.offset} came where {next_offset} was due")
        next_offset = delta.offset + len(delta.token_ids)
        answer.deltas.append(delta)
    if not answer.deltas or answer.deltas[-1].finish_reason is None:
        _broken("the stream ended without a finish reason")
    return answer


async def _tokenize(trial: Trial) -> str:
    ids = await trial.engine.tokenize("The sea is wide.")
    size = trial.engine.facts.vocabulary_size
    if not ids or not all(0 <= each < size for each in ids):
        _broken(f"ids {ids[:8]} are not all below {size}")
    return f"{len(ids)} ids"


async def _order(trial: Trial) -> str:
    answer = await trial.ask()
    if answer.deltas[0].offset != 0:
        _broken(f"the first offset is {answer.deltas[0].offset}")
    return f"{len(answer.ids)} tokens in {len(answer.deltas)} deltas"


async def _greedy(trial: Trial) -> str:
    first, again = await trial.ask(), await trial.ask()
    _same("two greedy runs", first.ids, again.ids)
    return "two runs are equal"


async def _stop(trial: Trial) -> str:
    whole = await trial.ask()
    words = re.findall(r"\S{3,}", whole.text)
    if len(words) < 3:  # noqa: PLR2004 - one to keep, one to stop at, one to lose
        raise Skipped(f"the answer {whole.text!r} has too few words to stop at one")
    stop = words[len(words) // 2]
    cut = await trial.ask(stop=(stop,))
    _same("the text before the stop string", cut.text, whole.text[: whole.text.index(stop)])
    if cut.deltas[-1].finish_reason is not FinishReason.STOP:
        _broken(f"the reason is {cut.deltas[-1].finish_reason}")
    return f"{len(cut.ids)} of {len(whole.ids)} tokens"


async def _seeds(trial: Trial) -> str:
    if not trial.engine.facts.capabilities.seeded_sampling:
        raise Skipped("the engine does not claim to obey seeds")
    ask = [
        trial.ask(sampling=Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=seed))
        for seed in (5, 5, 6)
    ]
    first, again, other = [await each for each in ask]
    _same("two runs with one seed", first.ids, again.ids)
    if first.ids == other.ids:
        _broken("another seed gave the same tokens")
    return "one seed repeats, another differs"


async def _logprobs(trial: Trial) -> str:
    if not trial.engine.facts.capabilities.logprobs:
        raise Skipped("the engine does not claim to give them")
    answer = await trial.ask(logprobs=0)
    found = [each.logprob for delta in answer.deltas for each in delta.logprobs]
    if len(found) != len(answer.ids) or not all(value <= 0 for value in found):
        _broken(f"{len(found)} values, {found[:4]}, for {len(answer.ids)} tokens")
    return f"{len(found)} values, mean {sum(found) / len(found):.2f}"


async def _cancel(trial: Trial) -> str:
    worst_s = 0.0
    for _ in range(5):
        async with _begun(trial, 1000):
            pass
        worst_s = max(worst_s, await _idle_after_s(trial))
    return await _in_time(trial, worst_s)


async def _deadline(trial: Trial) -> str:
    try:
        async with asyncio.timeout(0.5):
            while True:
                await trial.ask(tokens=1000)
    except TimeoutError:
        took_s = await _idle_after_s(trial)
    return await _in_time(trial, took_s)


async def _resume(trial: Trial) -> str:
    whole = await trial.ask()
    cut = len(whole.ids) // 2
    text = ""
    ids: list[int] = []
    for delta in whole.deltas:
        if len(ids) + len(delta.token_ids) > cut:
            break
        ids += delta.token_ids
        text += delta.text
    rest = await trial.ask(continuation=Continuation(tuple(ids), text))
    _same("delivered and continued tokens", ids + rest.ids, whole.ids)
    _same("delivered and continued text", text + rest.text, whole.text)
    return f"equal from token {len(ids)} on"


async def _kv_events(trial: Trial) -> str:
    facts = trial.engine.facts
    if not facts.capabilities.kv_events:
        raise Skipped("the engine does not claim to tell them")
    request = await trial.request("Remember this. " * 200, 4)
    # Engines leave the last token of a prompt out of its blocks.
    names = BlockHasher(facts.block_size).hashes(request.prompt_token_ids[:-1])
    async with trial.engine.submit(request) as deltas:
        await _read(deltas)
    try:
        async with asyncio.timeout(_EVENTS_S):
            # The holder is told by the engine; there is nothing to await.
            while not set(names) <= trial.holder.held:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        told = len(set(names) & trial.holder.held)
        _broken(f"{told} of {len(names)} blocks were told within {_EVENTS_S:g} s")
    async with trial.engine.submit(request) as deltas:
        again = await _read(deltas)
    cached = again.deltas[0].cached_prompt_tokens
    told = len(names) * facts.block_size
    if cached is not None and abs(cached - told) > facts.block_size:
        _broken(f"{told} tokens were told to be held and {cached} were found")
    return f"{len(names)} blocks told, {cached} tokens found in the cache"


async def _too_long(trial: Trial) -> str:
    facts = trial.engine.facts
    ids = (1,) * (facts.context_length + 1)
    with suppress(PromptTooLong):
        read_request(
            pb.GenerateRequest(model=facts.name),
            facts,
            request_id="smoke",
            prompt_token_ids=ids,
            default_max_tokens=16,
        )
        _broken(f"{len(ids)} tokens were let in; the context is {facts.context_length}")
    return f"{len(ids)} tokens are refused at the door"


async def _load(trial: Trial) -> str:
    async with _begun(trial, 1000):
        busy = trial.engine.load_figures()
    if busy.running_sequences != 1:
        _broken(f"{busy.running_sequences} sequences run while one request does")
    await _idle_after_s(trial)
    usage = "unknown" if busy.kv_cache_usage is None else f"{busy.kv_cache_usage:.1%}"
    return f"1 of {busy.max_sequences} sequences, KV cache {usage}"


async def _guided(trial: Trial) -> str:
    if not trial.engine.facts.capabilities.guided_decoding:
        raise Skipped("the engine does not claim it")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = await trial.ask(tokens=64, guided=Guided("json_schema", json.dumps(schema)))
    found = json.loads(answer.text)
    if set(found) != {"ok"} or not isinstance(found["ok"], bool):
        _broken(f"the answer is {answer.text!r}")
    return json.dumps(found)


async def _lora(trial: Trial) -> str:
    if not trial.adapter:
        raise Skipped("no --adapter was given")
    adapted, plain = await trial.ask(adapter=trial.adapter), await trial.ask()
    if adapted.ids == plain.ids:
        _broken("the adapter changes nothing")
    return "the adapter's answer differs from the base model's"


POINTS: dict[str, Callable[[Trial], Awaitable[str]]] = {
    "tokenize": _tokenize,
    "order and one end": _order,
    "greedy repeats": _greedy,
    "stop strings": _stop,
    "seeds": _seeds,
    "log-probabilities": _logprobs,
    "cancel frees the slot": _cancel,
    "deadline frees the slot": _deadline,
    "resume equals greedy": _resume,
    "KV events": _kv_events,
    "over-long prompt": _too_long,
    "load figures": _load,
    "guided decoding": _guided,
    "LoRA": _lora,
}
"""Every point by the name it is reported under."""


async def _in_time(trial: Trial, took_s: float) -> str:
    """One step of the engine, the longest of a run, and 100 ms are allowed."""
    loop = asyncio.get_running_loop()
    step_s = 0.0
    async with trial.engine.submit(await trial.request()) as deltas:
        await anext(deltas)
        last = loop.time()
        async for _ in deltas:
            now = loop.time()
            step_s, last = max(step_s, now - last), now
    seen = f"the slot was free after {took_s * 1000:.0f} ms; a step took {step_s * 1000:.0f} ms"
    if took_s > step_s + _CANCEL_S:
        _broken(seen)
    return seen


async def _idle_after_s(trial: Trial) -> float:
    """Seconds until the engine holds no sequence."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while trial.engine.load_figures().running_sequences:
        if loop.time() - began > _EVENTS_S:
            _broken(f"the slot was not free within {_EVENTS_S:g} s")
        await asyncio.sleep(0.002)
    return loop.time() - began


def _same(what: str, one: object, other: object) -> None:
    if one != other:
        _broken(f"{what} differ: {str(one)[:60]!r} and {str(other)[:60]!r}")


def _broken(text: str) -> NoReturn:
    raise Broken(text)
