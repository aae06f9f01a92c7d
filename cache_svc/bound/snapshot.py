"""What a bound has learnt, in a form that outlives its process."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cache_svc.bound.evidence import BANDS

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Band = Annotated[int, Field(ge=0, lt=BANDS)]


class ScopeSnapshot(BaseModel):
    """A ScopeBound without the records of its entries.

    Attributes:
        delta: what it was bound to; under another one it is not believed.
        bands: of each band what was observed of it, wrong, and seen.
        promised: the risk at which bands were served.
        hits: by the ledger, as charged and credit are.
        wealth: of the drift alarm.
        exact_only: whether it had fallen back.
        explored_since_alarm: candidates judged since it had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delta: _Share
    bands: Annotated[
        tuple[tuple[_Amount, _Amount, _Amount], ...], Field(min_length=BANDS, max_length=BANDS)
    ]
    promised: dict[_Band, _Share]
    hits: _Amount
    charged: _Amount
    credit: _Amount
    wealth: _Amount
    exact_only: bool
    explored_since_alarm: Annotated[int, Field(ge=0)]
    alarms: Annotated[int, Field(ge=0)]
