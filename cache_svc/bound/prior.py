"""What is believed of each band before a scope has seen anything of its own.

Round figures, set by hand with streams of BANKING77 (CC BY 4.0) in view. They are
worth few observations: a scope's own experience overrules them within dozens of
requests.
"""

from cache_svc.bound.evidence import BANDS
from cache_svc.bound.tally import Tally

PRIOR_WEIGHT = 8.0

# Rows: similarity under .80, .85, .90, .95, and over. Columns: alone, then
# agreement under .60, .80, .90, .97, and over.
_RATES = (
    (0.08, 0.50, 0.20, 0.08, 0.04, 0.02),
    (0.05, 0.45, 0.15, 0.06, 0.03, 0.01),
    (0.03, 0.40, 0.12, 0.05, 0.02, 0.008),
    (0.02, 0.35, 0.10, 0.03, 0.015, 0.005),
    (0.01, 0.30, 0.08, 0.02, 0.01, 0.004),
)


def new_tallies() -> list[Tally]:
    """A tally for each band, without observations."""
    rates = [rate for row in _RATES for rate in row]
    if len(rates) != BANDS:
        msg = f"the prior has {len(rates)} bands, the evidence {BANDS}"
        raise ValueError(msg)
    return [Tally(rate, PRIOR_WEIGHT) for rate in rates]
