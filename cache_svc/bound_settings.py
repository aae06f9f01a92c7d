"""What the operator sets about false semantic hits."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_Noise = Annotated[float, Field(ge=0, le=0.45, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


class BoundSettings(BaseModel):
    """The bound on false hits, and how it is watched."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """False: whatever the verifier lets pass is served."""
    max_false_hit_rate: _Share = 0.02
    """Largest share of wrong answers among semantic hits."""
    overrides: dict[str, _Share] = {}
    """The same by "tenant" or "tenant/namespace"; a namespace named here has a bound of
    its own, the others share their tenant's."""
    audit_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.03
    """Share of semantic hits that are generated again in the background and judged."""
    trusted_false_hits: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0
    """Wrong answers a new scope may be charged beyond its rate, before it has evidence of
    its own. 0: it serves nothing until it has."""
    company: Annotated[int, Field(ge=1, le=64)] = 8
    """How many of the nearest answers have a voice about a candidate."""
    judge_min_similarity: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.8
    """Cosine from which on two answers say the same."""
    judge_chars: Annotated[int, Field(ge=16, le=4096)] = 500
    """An answer is judged by its beginning: so many characters, inside the window."""
    judge_false_accept: _Noise = 0.18
    """How often the judge takes different answers for the same; measured on trap pairs by
    `python -m benchmarks.judge_noise`. It is taken out of what the judge reports."""
    judge_false_reject: _Noise = 0.0
    """How often the judge takes equal answers for different. Zero is on the safe side: what
    it rejects counts as wrong."""
    max_scopes: _Count = 1000
    """Bounds kept at once; one left alone the longest starts anew."""
    max_entries: _Count = 10_000
    """Entries of one bound whose own observations are kept."""
    max_senses: _Count = 1_000_000
    """Entries of which is known whose answers say the same."""
    max_pending: _Count = 10_000
    """Pairs that wait for a fresh answer to be judged by."""
