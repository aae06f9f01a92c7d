"""What the served hits of a scope were charged, against what the operator allows."""

# A new scope may by default serve on trust until it was charged one wrong answer.
CREDIT = 1.0
# Hits after which the older half is forgotten, so that savings of long ago do not
# pay for a bad day.
MEMORY = 4000.0


class Ledger:
    """Charges of all hits: at most δ of the hits, and the credit, at any moment."""

    __slots__ = ("_delta", "charged", "credit", "hits")

    def __init__(self, delta: float, credit: float) -> None:
        self._delta = delta
        self.credit = credit
        self.hits = 0.0
        self.charged = 0.0

    def affords(self, risk: float) -> bool:
        """Whether one more hit of this risk keeps the bound."""
        return self.charged + risk <= self._delta * (self.hits + 1) + self.credit

    def charge(self, risk: float) -> None:
        """Book one hit."""
        self.hits += 1
        self.charged += risk
        if self.hits > MEMORY:
            self.hits *= 0.5
            self.charged *= 0.5
            self.credit *= 0.5
