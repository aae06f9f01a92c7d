"""A prompt as routing sees it: how long it is and how it begins, in hashes only.

Pieces of the prompt's bytes are named by a chain of XXH3-64, as KV blocks are by their
token ids: equal names mean an equal beginning under an equal salt. Where the sidecar
says nothing, the names of what was routed before are all there is to go by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from xxhash import xxh3_64_intdigest

from router.prefix import PrefixHint
from router.ticket import Ticket
from sidecache.kv_blocks import token_bytes
from sidecache.v1 import inference_pb2 as pb

# Short prompts differ early; a long one need not be cut so finely further on.
_FINE_BYTES = 256
_COARSE_BYTES = 2048
_FINE_UNTIL = 4096
_MAX_NAMES = 4096
# A conversation sent as text or ids is told by its first this many bytes.
_OPENING_BYTES = 4096
_TOKEN_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """Names of a prompt's leading pieces.

    Attributes:
        names: 64 bits each; one stands for everything up to its piece's end.
        ends: how many bytes of the prompt each name stands for.
        size: bytes of the whole prompt.
        affinity: of the conversation: tenant, cache namespace, and the messages up to
            the user's first; or the first 4 KiB of a text.
    """

    names: tuple[int, ...]
    ends: tuple[int, ...]
    size: int
    affinity: int


class RoutedPrompt:
    """One ticket's prompt, and what the sidecar said of it; read only when there is a choice."""

    def __init__(self, ticket: Ticket, hint: PrefixHint | None) -> None:
        self._ticket = ticket
        self.hint = hint

    @cached_property
    def footprint(self) -> Footprint:
        """How the prompt begins."""
        return make_footprint(self._ticket.request, self._ticket.tenant)

    @property
    def known_tokens(self) -> int:
        """Its length where somebody counted; 0: nobody did."""
        request, hint = self._ticket.request, self.hint
        if request.WhichOneof("prompt") == "token_ids":
            return len(request.token_ids.ids)
        if hint is None:
            return 0
        return len(hint.prompt_token_ids) or hint.prompt_blocks * hint.block_size


def make_footprint(request: pb.GenerateRequest, tenant: str) -> Footprint:
    """Name a prompt's beginnings; those of different tenants, salts or adapters never meet."""
    root = xxh3_64_intdigest(_joined(request.cache_salt, request.model, request.adapter))
    names: list[int] = []
    ends: list[int] = []
    size, opening = 0, root
    is_open = True
    for piece, ends_opening in _pieces(request):
        size += len(piece)
        if len(names) < _MAX_NAMES:
            names.append(xxh3_64_intdigest(piece, names[-1] if names else root))
            ends.append(size)
        if is_open:
            opening = names[-1]
            is_open = not ends_opening and (_is_chat(request) or size < _OPENING_BYTES)
    affinity = xxh3_64_intdigest(_joined(tenant, request.cache.namespace), opening)
    return Footprint(tuple(names), tuple(ends), size, affinity)


def _is_chat(request: pb.GenerateRequest) -> bool:
    return request.WhichOneof("prompt") == "chat"


def _pieces(request: pb.GenerateRequest) -> Iterator[tuple[bytes, bool]]:
    """The prompt in pieces, each with whether it ends the conversation's opening."""
    match request.WhichOneof("prompt"):
        case "chat":
            tools = [
                part
                for tool in request.chat.tools
                for part in (tool.name, tool.description, tool.parameters_json_schema)
            ]
            if tools:
                yield _joined(*tools), False
            for message in request.chat.messages:
                *pieces, last = _cut(_joined(message.role, message.content))
                yield from ((piece, False) for piece in pieces)
                yield last, message.role == "user"
        case "token_ids":
            yield from ((piece, False) for piece in _cut(token_bytes(request.token_ids.ids)))
        case _:
            yield from ((piece, False) for piece in _cut(request.text.encode()))


def _cut(content: bytes) -> list[bytes]:
    """Fine pieces first, then coarse ones; the last is what is left."""
    view = memoryview(content)
    starts = [*range(0, min(len(view), _FINE_UNTIL), _FINE_BYTES)]
    starts += range(_FINE_UNTIL, len(view), _COARSE_BYTES)
    return [
        bytes(view[start:end]) for start, end in zip(starts, [*starts[1:], len(view)], strict=True)
    ]


def _joined(*parts: str) -> bytes:
    """Parts with their lengths, so that no two lists of them are joined alike."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in encoded)
