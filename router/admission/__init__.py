"""How much work is taken on, whose turn it is, and what is refused early."""
