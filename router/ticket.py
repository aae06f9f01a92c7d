"""A request that was let in: who asks, what exactly, of which model, by when."""

from dataclasses import dataclass

from router.admission.priority import PriorityClass
from router.model import ServedModel
from sidecache.key import RequestKey
from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Ticket:
    """Everything the request path needs to know; nothing in it changes again.

    Attributes:
        request: with every default resolved.
        key: None where the cache is neither asked nor told.
        timeout_s: what was left of the deadline at the door.
        opened_at: the router's clock at the door.
        split, variant: the public name that was asked for, and which variant it became; empty:
            the model was asked for by its own name.
        priority_class: of the caller's key.
        attach_window_s: how long a client whose connection was lost may come back.
    """

    request_id: str
    tenant: str
    request: pb.GenerateRequest
    model: ServedModel
    key: RequestKey | None
    may_look_up: bool
    may_store: bool
    timeout_s: float
    opened_at: float
    attach_window_s: float = 0.0
    split: str = ""
    variant: str = ""
    priority_class: PriorityClass = PriorityClass.STANDARD

    @property
    def only_if_cached(self) -> bool:
        """Whether the caller wants a stored answer or none."""
        return self.request.cache.mode == pb.CACHE_MODE_ONLY_IF_CACHED
