"""The canonical key of a request: where an answer may be used, and to what.

The key is a pure function of the request, the tenant and the model that would
answer: the same in every process, on every Python version and every machine.
It is built from length-prefixed bytes, so no two different requests can be
written the same way, and hashed with BLAKE2b.

``scope`` holds everything but the last user turn: tenant, namespace, model and
checkpoint revision, adapter, tools, history, sampling. ``exact`` adds that turn.
Similarity may only ever be asked inside one scope, and there only of a turn
that stands alone: what "and for children?" means is not in its words.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sidecache.standalone import why_not_standalone
from sidecache.v1 import inference_pb2 as pb

# Part of every key: raise it when the meaning of a field changes, and no older
# entry is ever found again.
KEY_VERSION = 1
_PERSON = b"sidecache-key"

# Little-endian without padding, so that they can be told apart and put together.
_AMOUNTS = struct.Struct("<4I")
_PENALTIES = struct.Struct("<3d")
_NO_PENALTIES = _PENALTIES.pack(1.0, 0.0, 0.0)
_SAMPLER = struct.Struct("<2dI?Q")
_NOTHING = struct.pack("<Q", 0)


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request is, as far as its answer is concerned.

    Attributes:
        scope: 32 bytes; everything but the last user turn.
        exact: 32 bytes; the whole request.
        semantic_text: the last user turn, to be compared by meaning inside the
            scope. Empty where :func:`why_not_compared` has a reason; the digests
            are the same either way.
    """

    scope: bytes
    exact: bytes
    semantic_text: str


def request_key(
    request: pb.GenerateRequest, *, tenant: str, model: str, revision: str
) -> RequestKey:
    """Compute the key of a request whose defaults are resolved.

    Args:
        request: with ``max_tokens`` and ``n`` set, since an unset one means
            another number on another router. ``continuation``, ``priority``, ``cache_salt``,
            ``retention`` and the cache control (but for its namespace) do not change an answer and
            are not part of the key.
        tenant: from the caller's credentials.
        model: the resolved model name, not the one asked for.
        revision: the checkpoint's fingerprint; a new one must miss.
    """
    kind = request.WhichOneof("prompt") or ""
    turn = ""
    scope = hashlib.blake2b(digest_size=32, person=_PERSON)
    scope.update(_scope_bytes(request, kind, tenant, model, revision))
    if kind == "chat":
        messages = request.chat.messages
        turn = _last_user_turn(request)
        history = messages[:-1] if turn else messages
        scope.update(_join([part.encode() for m in history for part in (m.role, m.content)]))
        last = turn.encode()
    else:
        last = _raw_prompt(request, kind)
    exact = hashlib.blake2b(digest_size=32, person=_PERSON)
    exact.update(_join((scope.digest(), kind.encode(), last)))
    semantic_text = turn if turn and not why_not_compared(request) else ""
    return RequestKey(scope.digest(), exact.digest(), semantic_text)


def why_not_compared(request: pb.GenerateRequest) -> str:
    """Why the request is matched exactly only, or "" when it is compared by meaning too.

    A first turn always stands alone, whatever the system prompt. May quote words
    of the turn: content, never for telemetry.
    """
    turn = _last_user_turn(request)
    if not turn:
        return "not a chat that ends with a user's turn"
    if all(message.role == "system" for message in request.chat.messages[:-1]):
        return ""
    reason = why_not_standalone(turn)
    return f"the last turn leans on those before it: {reason}" if reason else ""


def is_repeatable(request: pb.GenerateRequest) -> bool:
    """Whether asking again would give the same answer: greedy or seeded decoding."""
    sampling = request.sampling
    return sampling.temperature == 0 or sampling.HasField("seed")


def _last_user_turn(request: pb.GenerateRequest) -> str:
    """The turn that a chat ends with, if it is the user's; else empty."""
    messages = request.chat.messages
    return messages[-1].content if messages and messages[-1].role == "user" else ""


def _raw_prompt(request: pb.GenerateRequest, kind: str) -> bytes:
    """The bytes of a prompt without turns."""
    if kind == "token_ids":
        ids = request.token_ids.ids
        return struct.pack(f"<{len(ids)}I", *ids)
    return request.text.encode()


def _scope_bytes(
    request: pb.GenerateRequest, kind: str, tenant: str, model: str, revision: str
) -> bytes:
    # Unset and 0 differ: no log-probabilities, or the chosen token's own.
    logprobs = request.logprobs + 1 if request.HasField("logprobs") else 0
    penalties, sampler = _sampling_bytes(request)
    amounts = _AMOUNTS.pack(KEY_VERSION, request.max_tokens, request.n, logprobs) + penalties
    names = (tenant, request.cache.namespace, model, revision, request.adapter, kind)
    tools = request.chat.tools if kind == "chat" else ()
    if not tools and not request.stop and not request.HasField("guided"):
        return _plain_scope_bytes(amounts, sampler, names)
    grammar, guide = _guide(request)
    return _join(
        (
            amounts,
            sampler,
            *[name.encode() for name in names],
            grammar.encode(),
            guide,
            # The first stop string met ends the text, whatever their order.
            _join([stop.encode() for stop in sorted(set(request.stop))]),
            _join(
                [
                    part.encode()
                    for tool in tools
                    for part in (tool.name, tool.description, tool.parameters_json_schema)
                ]
            ),
        )
    )


@lru_cache(maxsize=512)
def _plain_scope_bytes(amounts: bytes, sampler: bytes, names: tuple[str, ...]) -> bytes:
    """The same where nothing guides decoding: of few kinds, each met again and again."""
    return _join(
        (
            amounts,
            sampler,
            *[name.encode() for name in names],
            b"",
            b"",
            _NOTHING,
            _NOTHING,
        )
    )


def _sampling_bytes(request: pb.GenerateRequest) -> tuple[bytes, bytes]:
    """The penalties, and what a sampler goes by: nothing, where decoding is greedy."""
    if not request.HasField("sampling"):
        return _NO_PENALTIES, b""
    sampling = request.sampling
    penalties = _PENALTIES.pack(
        sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
        # Adding 0.0 makes -0.0 and 0.0 one.
        sampling.presence_penalty + 0.0,
        sampling.frequency_penalty + 0.0,
    )
    if sampling.temperature == 0:
        # Greedy decoding looks at none of the rest, so it does not split its answers.
        return penalties, b""
    return penalties, _SAMPLER.pack(
        sampling.temperature,
        sampling.top_p if sampling.HasField("top_p") else 1.0,
        sampling.top_k,
        sampling.HasField("seed"),
        sampling.seed,
    )


def _guide(request: pb.GenerateRequest) -> tuple[str, bytes]:
    """The kind of grammar that guides decoding, and the grammar."""
    if not request.HasField("guided"):
        return "", b""
    grammar = request.guided.WhichOneof("grammar") or ""
    return grammar, getattr(request.guided, grammar).encode() if grammar else b""


def _join(parts: Sequence[bytes]) -> bytes:
    """Length-prefixed concatenation with a count: one reading only."""
    if not parts:
        return _NOTHING
    lengths = struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts))
    return lengths + b"".join(parts)
