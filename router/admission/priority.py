"""Priority classes: how much one kind of request counts beside another when not all can run.

A class comes with the key and with nothing else. Within its class a request may ask to be
served before or after its tenant's other ones, as far as its key allows.
"""

import enum

from sidecache.errors import Forbidden, InvalidRequest

# A request's own priority; the classes' bands do not meet, and all of them lie within
# what TensorRT-LLM can tell apart (inference_svc/engines/tensorrt_llm_sampling.py).
MAX_PRIORITY = 30


class PriorityClass(enum.Enum):
    """What a key's requests are for."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def engine_base(self) -> int:
        """Where the class's band lies among the priorities that engines are told."""
        return _ENGINE_BASES[self]


_ENGINE_BASES = {
    PriorityClass.INTERACTIVE: 65,
    PriorityClass.STANDARD: 0,
    PriorityClass.BATCH: -65,
}


def check_priority(asked: int, max_priority: int) -> None:
    """Refuse a priority that the key may not use.

    Raises:
        InvalidRequest: outside of what any request may ask for.
        Forbidden: above what this key may ask for.
    """
    if not -MAX_PRIORITY <= asked <= MAX_PRIORITY:
        raise InvalidRequest(f"{asked}; may be {-MAX_PRIORITY} to {MAX_PRIORITY}", field="priority")
    if asked > max_priority:
        raise Forbidden(f"priority: {asked}; this key may ask for {max_priority} at most")
