"""Words that change a question by being added to it.

Flu is not flu in babies, a password not a colleague's password, and watering
not to stop watering.
"""

from cache_svc.guard.exchange import Difference
from cache_svc.guard.words import stem

# Whom it is about.
_PARTIES = """baby babies infant toddler child children kid kids teenager teen teens adult adults
senior seniors elderly pensioner man men woman women boy girl pregnant
mother father mum dad mom parent parents husband wife spouse partner son daughter brother
sister friend family neighbour relative
colleague coworker boss manager employer employee contractor freelancer intern staff worker
landlord tenant lodger homeowner owner renter student teacher pupil graduate
member members guest guests visitor visitors resident residents foreigner tourist citizen
customer client supplier vendor seller buyer borrower lender admin administrator
company business corporate charity school team doctor nurse patient
dog dogs cat cats puppy kitten pet pets horse
self ex semi"""
# Whether it is wanted at all, and when.
_POLARITY = "stop quit cease fail pretend instead fake"
_TIMES = "next previous tomorrow yesterday tonight weekend overnight"

_WEIGHTY = frozenset(map(stem, f"{_PARTIES} {_POLARITY} {_TIMES}".split()))


def weighty_addition(difference: Difference) -> str:
    """A word that only one of two prompts says and that changes what is asked, or ""."""
    if difference.one and difference.other:
        return ""  # reworded rather than added to
    added = (w.text for w in (*difference.one, *difference.other) if w.stem in _WEIGHTY)
    return next(added, "")
